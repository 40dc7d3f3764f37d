"""What is known of a run: statistics of all processes, judged, added up, told to Prometheus."""
