"""Servers that a worker can run its application with: aiohttp, ASGI, datagrams."""
