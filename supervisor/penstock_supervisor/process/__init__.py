"""Processes of the operating system: fork and exec, privileges, limits, signals, the guardian."""
