"""All sockets and ports of a run; all proxies as one; rolling restarts; certificate reload."""
