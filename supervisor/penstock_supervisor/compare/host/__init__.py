"""What the kernel says: of the machine, of its noise, and of processes."""
