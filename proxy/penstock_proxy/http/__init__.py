"""Requests of clients and responses of workers: both connections, and the exchange between them."""
