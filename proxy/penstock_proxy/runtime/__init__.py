"""The process: its entry and its loop, what the supervisor tells it, and the services it runs."""
