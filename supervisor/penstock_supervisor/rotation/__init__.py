"""Which workers get traffic: what proxies are told, what they answer, sockets on their way."""
