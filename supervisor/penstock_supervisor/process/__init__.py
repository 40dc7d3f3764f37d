"""Processes: start, end, privileges, limits, restart policy, log files, handoff socket pairs."""
