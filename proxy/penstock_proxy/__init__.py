"""The proxy process: accepts clients on its listeners, and relays or passes each to a worker."""
