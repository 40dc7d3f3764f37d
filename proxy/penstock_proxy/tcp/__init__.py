"""Proxying of TCP connections without reading their content."""
