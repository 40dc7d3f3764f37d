"""From a listening socket to a served connection: accept, limits, PROXY header, SNI routing."""
