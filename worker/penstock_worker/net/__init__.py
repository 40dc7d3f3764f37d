"""Sockets in workers and the proxy: streams, PROXY headers, accept queues, a clean close."""
