"""Replacing what runs: proxies as a group, workers and certificates, and all sockets of a run."""
