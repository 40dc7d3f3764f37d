"""Reads the configuration, runs everything, talks to people."""
