"""What is known of a run: statistics of all processes, sanitized, added up, shown to Prometheus."""
