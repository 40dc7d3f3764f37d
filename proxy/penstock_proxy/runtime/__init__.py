"""The process: its event loop, the commands of the supervisor, statistics, and its services."""
