"""What the kernel tells: sockets by netlink, processes by /proc."""
