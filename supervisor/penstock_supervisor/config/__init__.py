"""The configuration: its keys and rules, errors and warnings, certificates, users; frozen."""
