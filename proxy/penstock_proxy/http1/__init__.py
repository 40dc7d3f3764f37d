"""The grammar of HTTP/1.1 (RFC 9112): heads, framing, bodies, forwarded headers. No I/O."""
