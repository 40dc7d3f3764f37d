"""Where a worker's connections come from: a socket of its own, an inherited one, or the proxy."""
