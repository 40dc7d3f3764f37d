"""Facts from the kernel: sockets by netlink, processes by /proc."""
