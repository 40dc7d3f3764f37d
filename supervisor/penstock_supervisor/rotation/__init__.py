"""Which workers get traffic: messages to and from proxies, views of proxies, sockets in transit."""
