"""Proxying of TCP connections whose content nobody reads."""
