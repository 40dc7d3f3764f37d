"""TLS at the listener: certificates and contexts by name, handshakes, TLS as a transport."""
