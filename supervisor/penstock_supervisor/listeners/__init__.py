"""The sockets that the supervisor keeps open, and the addresses of workers and upstreams."""
