"""Responses that two clients have read in two ways, with their sources.

A worker may be broken, or a client may make it send what the client wants. Its bytes must not
become the response to another client's request.
"""

from typing import Final

from tests.support.smuggling.chunks import END, EVIL

OK: Final = b"HTTP/1.1 200 OK\r\n"
CHUNKED: Final = OK + b"Transfer-Encoding: chunked\r\n\r\n"
FORGED: Final = OK + b"Content-Length: 6\r\n\r\nforged"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LENGTHS: Final = {
    "empty": (b"", "Garden S16; RFC 9110 8.6"),
    "plus": (b"+6", "hyper CVE-2021-32715; RFC 9110 8.6"),
    "minus": (b"-6", "Garden S26; RFC 9110 8.6"),
    "list of others": (b"6, 0", "RFC 9112 6.3: unrecoverable, 502"),
    "hexadecimal": (b"0x6", "Garden S32"),
    "underscore": (b"1_0", "Garden S10"),
    "letters behind": (b"6 bytes", "Garden S29"),
    "beyond 64 bits": (b"18446744073709551622", "wraps to 6"),
    "vertical tab": (b"\x0b6", "Garden S41"),
}
_CODINGS: Final = {
    "gzip before": (
        b"gzip, chunked",
        "RFC 9112 6.1: a coding that the request did not ask for with TE",
    ),
    "gzip behind": (b"chunked, gzip", "RFC 9112 6.3: would end with the connection"),
    "identity": (b"identity", "RFC 7230 took it away"),
    "twice": (b"chunked, chunked", "RFC 9112 7.1"),
    "x": (b"xchunked", "Kettle 2019"),
    "comma": (b",chunked", "Garden S21"),
    "parameter": (b"chunked;q=1", "RFC 9112 7.1"),
    "quoted": (b'"chunked"', "Kettle 2019"),
    "empty": (b"", "RFC 9112 6.1"),
    "vertical tab": (b"\x0bchunked", "HAProxy CVE-2019-18277"),
}
_FIELDS: Final = {
    "both": (
        b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
        "RFC 9112 6.1, 6.3: response splitting or worse",
    ),
    "two lengths": (
        b"Content-Length: 6\r\nContent-Length: 0\r\n",
        "RFC 9112 6.3: unrecoverable, 502; Garden S33",
    ),
    "two codings": (b"Transfer-Encoding: chunked\r\n" * 2, "Tornado GHSA-753j-mpmx-qq6g"),
    "a bare CR": (b"X: y\rSet-Cookie: evil\r\n", "response splitting; Garden S13"),
    "a bare LF": (b"X: y\nSet-Cookie: evil\r\n", "response splitting; Garden T16"),
    "NUL": (b"X: \x00\r\n", "Envoy CVE-2019-9900"),
    "no name": (b": y\r\n", "HAProxy CVE-2023-25725"),
    "no colon": (b"X\r\n", "RFC 9112 5"),
    "a length that Connection takes away": (
        b"Connection: Content-Length\r\nContent-Length: 6\r\n",
        "RFC 9110 7.6.1",
    ),
    "a fold that is no length": (
        b"Content-Length: 3\r\n 1\r\n",
        "RFC 9112 5.2: a space in its place makes `3 1` of it",
    ),
    "a fold before the first field": (b" X: y\r\n", "RFC 9112 2.2"),
}
_STARTS: Final = {
    "HTTP/0.9": (b"forged", "RFC 9110 15.6.6"),
    "HTTP/2": (b"HTTP/2 200 OK\r\n", "RFC 9112 2.3"),
    "HTTP/2.0": (b"HTTP/2.0 200 OK\r\n", "RFC 9112 2.3"),
    "small letters": (b"http/1.1 200 OK\r\n", "RFC 9112 2.3"),
    "ICY": (b"ICY 200 OK\r\n", "llhttp once took it"),
    "two digits": (b"HTTP/1.1 20 OK\r\n", "RFC 9112 4"),
    "four digits": (b"HTTP/1.1 2000 OK\r\n", "RFC 9112 4"),
    "a sign": (b"HTTP/1.1 +20 OK\r\n", "int() takes it"),
    "status 0": (b"HTTP/1.1 000 OK\r\n", "RFC 9110 15"),
    "status 099": (b"HTTP/1.1 099 OK\r\n", "RFC 9110 15"),
    "two spaces": (b"HTTP/1.1  200 OK\r\n", "RFC 9112 4"),
    "a tab": (b"HTTP/1.1\t200\tOK\r\n", "RFC 9112 4"),
    "CR in the reason": (b"HTTP/1.1 200 O\rK\r\n", "response splitting"),
    "NUL in the reason": (b"HTTP/1.1 200 O\x00K\r\n", "RFC 9112 4"),
    "LF for CRLF": (b"HTTP/1.1 200 OK\nContent-Length: 6\n\nforged", "RFC 9112 2.2"),
    "an empty line first": (b"\r\n" + OK, "RFC 9112 2.2: that is for requests"),
    "a blank first": (b" " + OK, "RFC 9112 4"),
    "a request": (EVIL, "a worker that mixes up its sides"),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", "the wrong port"),
    "TLS alert": (b"\x15\x03\x01\x00\x02\x02\x46", "the wrong port"),
}
_WHOLE: Final = {
    "101 unasked": (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        "Envoy #10566; websocket smuggling (0ang3el, 2019)",
    ),
    "101 without a protocol": (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "RFC 9110 15.2.2"),
    "1xx with a length": (
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: %d\r\n\r\n" % len(FORGED) + FORGED,
        "RFC 9110 8.6: what follows is its body or the final response",
    ),
    "1xx with chunks": (
        b"HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n" + END,
        "RFC 9112 6.1; Envoy #11458",
    ),
    "1xx of HTTP/1.0": (
        b"HTTP/1.0 103 Early Hints\r\n\r\n" + FORGED,
        "RFC 9110 15.2; llhttp reads no more behind it; found by our fuzzer",
    ),
    "1xx without end": (CONTINUE * 17, "an answer that never comes; Go takes five"),
    "1xx, then nonsense": (CONTINUE + b"forged\r\n\r\n", "RFC 9110 15.2"),
    "a head without end": (OK + b"X: y\r\n" * 20_000, "curl CVE-2023-38039"),
    "a line without end": (OK + b"X: " + b"y" * 70_000, "curl CVE-2023-38039"),
    "more fields than anybody needs": (OK + b"X:\r\n" * 1001 + b"\r\n", "hash floods"),
}  # fmt: skip


def _heads() -> dict[str, tuple[bytes, str]]:
    found = {
        f"length {name}": (OK + b"Content-Length: " + value + b"\r\n\r\nforged", why)
        for name, (value, why) in _LENGTHS.items()
    }
    found |= {
        f"coding {name}": (OK + b"Transfer-Encoding: " + value + b"\r\n\r\n" + END, why)
        for name, (value, why) in _CODINGS.items()
    }
    found |= {
        f"fields: {name}": (OK + block + b"\r\n" + END, why)
        for name, (block, why) in _FIELDS.items()
    }
    found |= {f"start {name}": (start + b"\r\n", why) for name, (start, why) in _STARTS.items()}
    return found | _WHOLE


REFUSED: Final[dict[str, tuple[bytes, str]]] = _heads()
"""The client gets 502 for them, and nothing of them."""
