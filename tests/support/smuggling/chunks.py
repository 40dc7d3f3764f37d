"""Chunked bodies that two servers have read in two ways, for requests and for responses."""

from typing import Final

EVIL: Final = b"GET /evil HTTP/1.1\r\nHost: a\r\n\r\n"
END: Final = b"0\r\n\r\n"

SIZES: Final = {
    "size 0x": (b"0x5", "Garden S1, S22, S25; aiohttp CVE-2023-47627; waitress CVE-2022-24761"),
    "size 0X": (b"0X5", "the same"),
    "size of 0x0": (b"0x0", "Garden T19: the end to one, an error to another"),
    "size plus": (b"+5", "Garden S25, T19; Twisted CVE-2022-24801"),
    "size minus": (b"-5", "Garden S25, T19; Twisted CVE-2022-24801"),
    "size minus zero": (b"-0", "Garden T19"),
    "size underscore": (b"0_5", "aiohttp CVE-2023-47627; Garden S1"),
    "size letters behind": (b"5x", "picohttpparser #78; Garden S22, T7"),
    "size words behind": (b"5these-bytes-never-get-validated", "Garden T7 (ATS)"),
    "size no hex": (b"Z", "Garden T2 (Akamai CVE-2025-66373)"),
    "size empty": (b"", "Go #64517, hyper, Mongoose #2552; Garden S17"),
    "size dot": (b"5.0", "RFC 9112 7.1"),
    "size comma": (b"5,5", "RFC 9112 7.1"),
    "size quoted": (b'"5"', "RFC 9112 7.1"),
    "size behind a space": (b" 5", "Garden T24; ntex #944"),
    "size behind a tab": (b"\t5", "ntex #944"),
    "size with a space": (b"0 5", "RFC 9112 7.1"),
    "size with NUL": (b"5\x00", "Garden S43's kind"),
    "size with a vertical tab": (b"5\x0b", "what a language strips, HTTP does not"),
    "size with U+0085": (b"5\x85", "Garden S41's kind"),
    "size beyond 64 bits": (b"10000000000000005", "wraps to 5; hyper CVE-2021-32714"),
    "size beyond 63 bits": (b"8000000000000000", "negative where it is signed"),
    "size of all bits": (b"ffffffffffffffff", "minus one; nginx CVE-2013-2028"),
    "size beyond 32 bits, endless": (b"1" + b"0" * 64, "Apache CVE-2015-3183"),
    "size of endless zeros": (b"0" * 300 + b"5", "Node CVE-2024-22019's kind"),
}
_EXTENSIONS: Final = {
    "extension of nothing": (b"5;", "Http11Probe SMUG-CHUNK-BARE-SEMICOLON"),
    "extension of a space": (b"5; ", "RFC 9112 7.1.1"),
    "extension without a value": (b"5;a=", "RFC 9112 7.1.1"),
    "extension without a name": (b"5;=b", "RFC 9112 7.1.1"),
    "extension of other bytes": (b"5;a[b", "Http11Probe SMUG-CHUNK-EXT-INVALID-TOKEN"),
    "extension with NUL": (b"5;a\x00b", "Http11Probe SMUG-CHUNK-EXT-CTRL"),
    "extension behind a vertical tab": (b"5\x0b;a", "what a language strips, HTTP does not"),
    "extension behind CR": (b"5\r;a", "Garden T3 (ATS), S36: whitespace before the semicolon"),
    "extension behind CR CR": (b"5\r\r;ABCD", "Garden S31: CR and any byte"),
    "extension with CR": (b"5;a\rb", "funky chunks; Garden S36 (H2O)"),
    "extension with LF": (b"5;a\nb", "Kestrel CVE-2025-55315; aiohttp CVE-2024-52304"),
    "extension with LF in quotes": (b'5;a="\n"', "Kestrel CVE-2025-55315; gunicorn #3327"),
    "extension with CR in quotes": (b'5;a="\r"', "funky chunks"),
    "extension with CR LF in quotes": (b'5;a="\r\nb"', "RFC 9110 5.6.4: no line ends in quotes"),
    "extension with NUL in quotes": (b'5;a="\x00"', "RFC 9110 5.6.4"),
    "extension with an escaped LF": (b'5;a="\\\n"', "RFC 9110 5.6.4"),
    "extension with an open quote": (b'5;a="b', "RFC 9110 5.6.4"),
    "extension with a word behind a quote": (b'5;a="b"c', "RFC 9110 5.6.4"),
    "extension of two": (b"5;a;;b", "RFC 9112 7.1.1"),
    "extension without end": (b"5;" + b"a" * 5000, "Node CVE-2024-22019; Go CVE-2023-39326"),
}  # fmt: skip
_ENDS: Final = {
    "size ends with LF": (b"5\nhello\r\n" + END, "Go CVE-2025-22871; Netty CVE-2025-58056"),
    "size ends with CR": (b"5\rhello\r\n" + END, "Garden S31 (libsoup)"),
    "size ends with CR CR LF": (b"5\r\r\nhello\r\n" + END, "RFC 9112 7.1"),
    "data ends with LF": (b"5\r\nhello\n" + END, "Garden T13"),
    "data ends with CR": (b"5\r\nhello\r0" + END, "Garden S39's kind"),
    "data ends with two other bytes": (b"5\r\nhelloXX" + END, "h11 CVE-2025-43859; funky chunks"),
    "data does not end": (b"5\r\nhello" + END, "Http11Probe SMUG-CHUNK-MISSING-TRAILING-CRLF"),
    "data spills": (b"5\r\nhelloWORLD\r\n" + END, "pound #43; funky chunks SPILL.TERM"),
    "data falls short": (b"a\r\nhello\r\n" + END + EVIL, "funky chunks"),
    "an empty line between": (b"5\r\nhello\r\n\r\n" + END, "Garden T17; mongoose #2552"),
    "an empty line first": (b"\r\n5\r\nhello\r\n" + END, "Garden S17"),
    "the last one ends with LF": (b"0\n\r\n", "http-garden's own example; Go CVE-2025-22871"),
    "the last one ends with LF LF": (b"0\n\n", "the same"),
    "the end is LF": (b"5\r\nhello\r\n0\r\n\n" + EVIL, "RFC 9112 7.1"),
    "the end is CR and a byte": (b"0\r\n\rX" + EVIL, "Garden S39"),
    "the end is two other bytes": (b"0\r\nX:POST / HTTP/1.1\n\r\n\r\n", "Garden S39 (OpenWrt)"),
    "invalid, and a request behind": (b"INVALID!!!\r\n" + EVIL, "Garden S47"),
    "a request for an end": (b"5\r\nhello\r\n" + EVIL, "RFC 9112 7.1"),
}  # fmt: skip
_TRAILERS: Final = {
    "trailer without a colon": (b"X\r\n", "RFC 9112 7.1.2"),
    "trailer without a name": (b": y\r\n", "HAProxy CVE-2023-25725"),
    "trailer behind a space": (b" X: y\r\n", "RFC 9112 5.2"),
    "trailer with LF": (b"X: y\nZ: w\r\n", "Http11Probe SMUG-CHUNK-LF-TRAILER"),
    "trailer with CR": (b"X: y\rZ: w\r\n", "RFC 9112 2.2"),
    "trailer with NUL": (b"X: \x00\r\n", "RFC 9110 5.5"),
    "trailer of a request": (b"GET /evil HTTP/1.1\r\nHost: a\r\n", "aiohttp CVE-2025-53643"),
    "trailers without end": (b"X: y\r\n" * 5000, "Tomcat CVE-2023-46589"),
}
_OF_CLIENTS: Final = {
    "size before a space": (b"5 ", "h11 #133; Http11Probe SMUG-CHUNK-SIZE-TRAILING-OWS"),
    "size before a tab": (b"5\t", "h11 #133"),
    "extension before a space": (b"5;a ", "RFC 9112 7.1.1 has no blanks there"),
}
_TRAILERS_OF_CLIENTS: Final = {
    "trailer with a space before the colon": (b"X : y\r\n", "RFC 9112 5.1"),
    "trailer folded": (b"X: y\r\n z\r\n", "RFC 9112 5.2"),
    "trailer of a length": (
        b"Content-Length: 9\r\n",
        "RFC 9110 6.5.1; Http11Probe SMUG-TRAILER-CL",
    ),
    "trailer of a coding": (
        b"X: y\r\ntRansfer-encoding: chunked\r\n",
        "RFC 9110 6.5.1; Http11Probe SMUG-TRAILER-TE; llhttp obeys it",
    ),
}
BODIES: Final[dict[str, tuple[bytes, str]]] = {
    **{name: (size + b"\r\nhello\r\n" + END, why) for name, (size, why) in SIZES.items()},
    **{name: (size + b"\r\nhello\r\n" + END, why) for name, (size, why) in _EXTENSIONS.items()},
    **_ENDS,
    **{
        name: (b"5\r\nhello\r\n0\r\n" + block + b"\r\n", why)
        for name, (block, why) in _TRAILERS.items()
    },
}
"""Each cannot become a body, whatever follows."""
REQUEST_BODIES: Final[dict[str, tuple[bytes, str]]] = {
    **{name: (size + b"\r\nhello\r\n" + END, why) for name, (size, why) in _OF_CLIENTS.items()},
    **{
        name: (b"5\r\nhello\r\n0\r\n" + block + b"\r\n", why)
        for name, (block, why) in _TRAILERS_OF_CLIENTS.items()
    },
}
"""Each is refused from a client. From a worker it has one reading."""
