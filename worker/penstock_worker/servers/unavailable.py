"""The response to a request that a worker cannot finish, because its time to leave is over.

Owns these bytes. They are written past the program, whose handler has not begun to respond. A
worker that clients connect to answers so itself; behind a proxy the proxy has answered by then.
"""

from typing import Final

_BODY: Final = b"shutting down\n"
LEAVING: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nRetry-After: 1\r\nConnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)
