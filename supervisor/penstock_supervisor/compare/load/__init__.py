"""Load for `penstock compare`: clients, the processes that run them, wrk."""
