"""Sockets and time: the event loop of the data path, transports, connects, coarse timers."""
