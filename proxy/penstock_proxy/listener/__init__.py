"""From a listening socket to whoever serves a connection: accept, limits, PROXY header, SNI."""
