"""The grammar of HTTP/1.1 (RFC 9112): heads, framing, bodies, forwarding fields. No I/O."""
