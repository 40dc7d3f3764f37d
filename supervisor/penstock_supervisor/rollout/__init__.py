"""Changes without loss: rolling restarts, replaced proxies, new certificates."""
