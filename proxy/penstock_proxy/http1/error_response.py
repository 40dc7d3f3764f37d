"""A response that the proxy makes itself: a status, and one line of text.

Owns: its bytes. Must not know: when one is sent, and what happens to the connection then. No I/O.
"""

from penstock_proxy.errors import Fault, status_line


def error_response(
    fault: Fault, retry_after: int, connection: str = "", *, has_body: bool = True
) -> tuple[bytes, int]:
    """The response, and the size of its body.

    `retry_after`: seconds, for a 503. `connection`: the option of Connection; empty: no such field.
    `has_body`: False for the response to a HEAD request.
    """
    body = f"{fault.text}\n"
    head = (
        f"{status_line(fault)}"
        f"Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
    )
    if fault.status == 503:
        head += f"Retry-After: {retry_after}\r\n"
    if connection:
        head += f"Connection: {connection}\r\n"
    if not has_body:
        body = ""
    return f"{head}\r\n{body}".encode(), len(body)
