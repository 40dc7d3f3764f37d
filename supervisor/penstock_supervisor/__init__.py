"""Reads the configuration, runs proxies and workers, and serves status and metrics."""
