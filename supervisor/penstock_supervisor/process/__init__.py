"""Processes of the system: fork and exec, privileges, limits, signals, and who cleans up."""
