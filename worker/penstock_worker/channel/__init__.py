"""JSON lines with file descriptors between two processes, as Node's child processes speak."""
