"""What makes a process a worker: its link to the supervisor, and errors that nobody caught."""
