"""Connections that the proxy accepted and passes to a worker: one descriptor, one message."""
