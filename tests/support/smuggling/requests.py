"""Requests that two servers have read in two ways, with the expected status and the source."""

from typing import NamedTuple

from tests.support.smuggling.chunks import BODIES, REQUEST_BODIES

HOST = b"Host: a\r\n"
EVIL = b"GET /evil HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
END = b"0\r\n\r\n"


class Trick(NamedTuple):
    data: bytes
    status: int
    source: str


def post(fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"POST / HTTP/" + version + b"\r\n" + HOST + fields + b"\r\n" + body


def get(fields: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\n" + fields + b"\r\n"


def lengths() -> dict[str, Trick]:
    """Content-Length that is not one number."""
    values = {
        "empty": (b"", "HAProxy CVE-2023-40225; Garden S16, S38, T5"),
        "plus": (b"+5", "waitress CVE-2022-24761, Jetty CVE-2023-40167, hyper CVE-2021-32715"),
        "minus": (b"-5", "Garden S26: endless loops"),
        "minus zero": (b"-0", "RFC 9110 8.6: digits"),
        "list of others": (b"5, 35", "RFC 9112 6.3"),
        "list with a hole": (b"5,", "RFC 9110 8.6; Garden S29"),
        "hexadecimal": (b"0x5", "Garden S32, T1 (Akamai)"),
        "octal prefix": (b"0o5", "Python's int() with base 0; Http11Probe SMUG-CL-OCTAL"),
        "underscore": (b"1_0", "aiohttp CVE-2023-47627; Garden S10"),
        "letters behind": (b"5Z", "Garden S29: the longest valid prefix"),
        "exponent": (b"5e0", "RFC 9110 8.6: digits"),
        "fraction": (b"5.0", "RFC 9110 8.6: digits"),
        "space inside": (b"1 0", "Http11Probe SMUG-CL-INTERNAL-SPACE"),
        "quoted": (b'"5"', "RFC 9110 8.6: digits"),
        "parameter": (b"5;q=1", "RFC 9110 8.6: digits"),
        "superscript digit": (b"\xb2", "str.isdigit() takes it, int() does not"),
        "arabic digits in UTF-8": (b"\xd9\xa5", "int() takes them; aiohttp CVE-2024-23829"),
        "vertical tab": (b"\x0b5", "Garden S41: what a language strips, HTTP does not"),
        "next line": (b"\x855", "Garden S41: U+0085 is blank to Python"),
        "no-break space": (b"5\xa0", "Garden S41: U+00A0 is blank to Python"),
        "NUL behind": (b"5\x00", "Garden S43"),
        "beyond 64 bits": (b"18446744073709551621", "wraps to 5 in 64 bits"),
        "beyond 63 bits": (b"9223372036854775808", "negative where it is signed"),
        "beyond all bits": (b"9" * 400, "int() of 4300 digits raises, others wrap"),
    }
    found = {
        f"length {name}": Trick(post(b"Content-Length: " + value + b"\r\n", EVIL), 400, source)
        for name, (value, source) in values.items()
    }
    fields = {
        "twice the same in two spellings": (
            b"Content-Length: 5\r\nContent-Length: 05\r\n",
            "RFC 9112 6.3: the same values; servers have read the second as octal",
        ),
        "first wins": (
            b"Content-Length: 0\r\nContent-Length: 31\r\n",
            "Garden T22, S33",
        ),
        "last wins": (
            b"Content-Length: 31\r\nContent-Length: 0\r\n",
            "Garden S23 (H2O, OpenLiteSpeed)",
        ),
        "in two spellings": (b"Content-Length: 0\r\ncONTENT-lENGTH: 31\r\n", "RFC 9110 5.1"),
        "behind an empty one": (
            b"Content-Length: \r\nContent-Length: 31\r\n",
            "HAProxy CVE-2023-40225; Garden S42, T11",
        ),
        "with a space before the colon": (
            b"Content-Length : 31\r\n",
            "RFC 9112 5.1; Go CVE-2019-16276, Netty CVE-2019-16869, LiteSpeed CVE-2023-40518",
        ),
        "with a tab before the colon": (b"Content-Length\t: 31\r\n", "Kettle 2019"),
        "without a colon": (b"Content-Length 31\r\n", "Garden S28"),
        "behind a space": (b" Content-Length: 31\r\n", "Node CVE-2024-27982; Garden S4"),
        "behind a tab": (b"\tContent-Length: 31\r\n", "aiohttp GHSA-gfw2-4jvh-wgfg; Garden S4"),
        "folded": (b"Content-Length:\r\n 31\r\n", "RFC 9112 5.2; Akamai CVE-2025-32094"),
        "folded inside": (b"Content-Length: 3\r\n 1\r\n", "RFC 9112 5.2"),
        "folded into another": (b"X: y\r\n Content-Length: 31\r\n", "RFC 9112 5.2; Kettle 2019"),
        "name in two lines": (b"Content-\r\nLength: 31\r\n", "Garden S37"),
        "name with U+0085": (b"Content-Length\x85: 31\r\n", "gunicorn #3091; Garden S20, T6"),
        "name with U+00A0": (b"Content-Length\xa0: 31\r\n", "gunicorn #3091; Garden S20, T6"),
        "name with NUL": (b"Content-Length\x00: 31\r\n", "Garden S14; Kettle 2019"),
        "behind a bare CR": (
            b"X: y\rContent-Length: 31\r\n",
            "llhttp CVE-2023-30589; Garden S13 (http.server, Mongoose)",
        ),
        "behind a bare LF": (
            b"X: y\nContent-Length: 31\r\n",
            "RFC 9112 2.2; llhttp CVE-2022-32214; Garden T16",
        ),
        "taken away by Connection": (
            b"Connection: Content-Length\r\nContent-Length: 31\r\n",
            "RFC 9110 7.6.1; Apache CVE-2022-31813's kind",
        ),
    }
    found |= {
        f"length {name}": Trick(post(value, EVIL), 400, source)
        for name, (value, source) in fields.items()
    }
    return found


def codings() -> dict[str, Trick]:
    """Transfer-Encoding that some take for chunked, and some do not."""
    values = {
        "x-chunked": (b"x-chunked", 400, "Kettle 2019"),
        "xchunked": (b"xchunked", 400, "Kettle 2019"),
        "chunkedx": (b"chunkedx", 400, "a prefix is not the word"),
        "chunke": (b"chunke", 400, "RFC 9112 6.3: not chunked at the end is 400"),
        "cow": (b"cow", 400, "Kettle 2019; Garden S44: all unknown is chunked"),
        "identity": (b"identity", 400, "RFC 7230 took it away; RFC 9112 6.3"),
        "gzip": (b"gzip", 400, "RFC 9112 6.3"),
        "gzip before chunked": (b"gzip, chunked", 501, "RFC 9112 6.1: not implemented"),
        "identity before chunked": (b"identity, chunked", 501, "llhttp CVE-2022-32213's kind"),
        "chunked before identity": (b"chunked, identity", 400, "gunicorn CVE-2024-1135"),
        "chunked before gzip": (b"chunked, gzip", 400, "RFC 9112 6.3"),
        "chunked twice": (b"chunked, chunked", 400, "RFC 9112 7.1: never more than once"),
        "chunked thrice": (b"chunked, gzip, chunked", 400, "RFC 9112 7.1"),
        "empty": (b"", 400, "Http11Probe SMUG-TE-EMPTY-VALUE"),
        "comma before": (b",chunked", 400, "gunicorn #3087; Garden S21, T9, T18"),
        "comma behind": (b"chunked,", 400, "the same from the other end"),
        "comma alone": (b",", 400, "RFC 9110 5.6.1"),
        "parameter": (b"chunked;q=1", 400, "RFC 9112 7.1: an error"),
        "empty parameter": (b"chunked;", 400, "RFC 9112 7.1"),
        "quoted": (b'"chunked"', 400, "Kettle 2019"),
        "in apostrophes": (b"'chunked'", 400, "Kettle 2019"),
        "space inside": (b"chu nked", 400, "RFC 9110 5.6.2"),
        "two words": (b"chunked chunked", 400, "RFC 9110 5.6.2"),
        "vertical tab before": (b"\x0bchunked", 400, "HAProxy CVE-2019-18277; gunicorn #2176"),
        "vertical tab behind": (b"chunked\x0b", 400, "HAProxy CVE-2019-18277"),
        "form feed": (b"\x0cchunked", 400, "gunicorn #3364"),
        "file separator": (b"\x1cchunked\x1d", 400, "gunicorn #3364: blank to Python"),
        "U+0085": (b"\x85chunked", 400, "Garden S12 (Tornado)"),
        "U+00A0": (b"chunked\xa0", 400, "Garden S12 (Tornado)"),
        "0xff": (b"\xffchunked\xff", 400, "Garden S46"),
        "NUL": (b"chunked\x00", 400, "Http11Probe SMUG-TE-NULL"),
        "a Kelvin sign for k": (b"chun\xe2\x84\xaaed", 400, "lower() of text makes it a k"),
        "dotless letters": (b"\xc4\xb1dentity", 400, "the same the other way round"),
    }
    found = {
        f"coding {name}": Trick(
            post(b"Transfer-Encoding: " + value + b"\r\n", END + EVIL), status, source
        )
        for name, (value, status, source) in values.items()
    }
    fields = {
        "twice": (CHUNKED * 2, 400, "Tornado GHSA-753j-mpmx-qq6g; Garden S11, T25"),
        "chunked, then identity": (
            CHUNKED + b"Transfer-Encoding: identity\r\n", 400, "Kettle 2019; llhttp CVE-2022-32215",
        ),
        "identity, then chunked": (
            b"Transfer-Encoding: identity\r\n" + CHUNKED, 400, "Kettle 2019",
        ),
        "space before the colon": (
            b"Transfer-Encoding : chunked\r\n", 400, "RFC 9112 5.1; Go CVE-2019-16276; Kettle 2019",
        ),
        "behind a space": (b" Transfer-Encoding: chunked\r\n", 400, "Kettle 2019"),
        "behind a bare CR": (
            b"X: \rxTransfer-Encoding: chunked\r\n", 400, "llhttp CVE-2023-30589, its very PoC",
        ),
        "behind a bare LF": (
            b"X: y\nTransfer-Encoding: chunked\r\n", 400, "Kettle 2019; llhttp CVE-2022-32214",
        ),
        "behind CR LF CR": (
            b"X: y\r\n\rTransfer-Encoding: chunked\r\n", 400, "llhttp CVE-2025-23167; Garden S30",
        ),
        "folded": (
            b"Transfer-Encoding:\r\n chunked\r\n", 400, "llhttp CVE-2022-32215; RFC 9112 5.2",
        ),
        "folded behind": (
            b"Transfer-Encoding: chunked\r\n , identity\r\n", 400, "RFC 9112 5.2",
        ),
        "name in two lines": (b"Transfer-\r\nEncoding: chunked\r\n", 400, "Garden S37"),
        "under another's fold": (b"X: y\r\n Transfer-Encoding: chunked\r\n", 400, "Kettle 2019"),
        "taken away by Connection": (
            b"Connection: Transfer-Encoding\r\n" + CHUNKED, 400, "RFC 9110 7.6.1",
        ),
    }  # fmt: skip
    found |= {
        f"coding {name}": Trick(post(value, END + EVIL), status, source)
        for name, (value, status, source) in fields.items()
    }
    return found


def both() -> dict[str, Trick]:
    """Both ways to frame a body at once, and chunks in HTTP/1.0."""
    five = b"Content-Length: 5\r\n"
    return {
        "CL.TE": Trick(post(five + CHUNKED, END + EVIL), 400, "RFC 9112 6.1; Kettle 2019"),
        "TE.CL": Trick(post(CHUNKED + five, END + EVIL), 400, "RFC 9112 6.1; LiteSpeed #392"),
        "0.CL": Trick(post(CHUNKED + b"Content-Length: 0\r\n", END), 400, "Kettle 2025"),
        "CL and an unknown coding": Trick(
            post(five + b"Transfer-Encoding: xchunked\r\n", END + EVIL), 400, "Garden T15"
        ),
        "chunks in HTTP/1.0": Trick(
            post(CHUNKED, END + EVIL, b"1.0"), 400, "RFC 9112 6.1; Kettle 2019"
        ),
        "chunks and length in HTTP/1.0": Trick(
            post(CHUNKED + five, END + EVIL, b"1.0"), 400, "RFC 9112 6.1"
        ),
    }


def lines() -> dict[str, Trick]:
    """Ends of lines, colons, and bytes that are no text."""
    fields = {
        "bare LF ends a field": (b"X: y\n", "RFC 9112 2.2; Garden T16"),
        "bare CR ends a field": (b"X: y\rZ: w\r\n", "Garden S13, T10"),
        "two CRs": (b"X: y\r\r\n", "RFC 9112 2.2"),
        "CR in a value": (b"X: y\rz\r\n", "RFC 9112 2.2; Garden S34"),
        "NUL in a value": (b"X: y\x00z\r\n", "Envoy CVE-2019-9900; Garden S2, S35, T12"),
        "escape in a value": (b"X: \x1b[2J\r\n", "RFC 9110 5.5"),
        "delete in a value": (b"X: \x7f\r\n", "RFC 9110 5.5"),
        "no name": (b": y\r\n", "HAProxy CVE-2023-25725; Garden S18; llhttp #257"),
        "no name and no value": (b":\r\n", "HAProxy CVE-2023-25725; Garden S27"),
        "no colon": (b"X\r\n", "RFC 9112 5; Garden T14"),
        "a second start line": (b"GET /evil HTTP/1.1\r\n", "RFC 9112 5: a line without a colon"),
        "space before the colon": (b"X : y\r\n", "RFC 9112 5.1; Envoy CVE-2019-18802's kind"),
        "space in a name": (b"X Y: z\r\n", "RFC 9110 5.1"),
        "tab in a name": (b"X\tY: z\r\n", "Http11Probe NORM-TAB-IN-NAME"),
        "letters beyond ASCII in a name": (b"\xefoo: y\r\n", "Garden S8"),
        "slash in a name": (b"X/Y: z\r\n", "Garden S14"),
        "brackets in a name": (b"X[Y]: z\r\n", "Garden S14"),
        "a fold": (b"X: y\r\n z\r\n", "RFC 9112 5.2"),
        "a fold by tab": (b"X: y\r\n\tz\r\n", "RFC 9112 5.2"),
        "an empty fold": (b"X: y\r\n \r\n", "RFC 9112 5.2"),
        "CR LF CR": (b"X: y\r\n\rZ: w\r\n", "llhttp CVE-2025-23167; Garden S30"),
    }
    found = {
        f"line {name}": Trick(get(HOST + value), 400, source)
        for name, (value, source) in fields.items()
    }
    found |= {
        "a fold before the first field": Trick(
            b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, "RFC 9112 2.2; Kettle 2019"
        ),
        "LF LF in a value": Trick(
            get(HOST + b"X:\n\n") + EVIL, 400, "gunicorn #3144; Garden S19"
        ),
        "all lines end in LF": Trick(
            b"GET / HTTP/1.1\nHost: a\n\n", 400, "RFC 9112 2.2 allows to refuse"
        ),
        "all lines end in CR": Trick(
            b"GET / HTTP/1.1\rHost: a\r\r" + EVIL, 400, "RFC 9112 2.2; Garden S13"
        ),
        "LF before a request": Trick(b"\n" + EVIL, 400, "RFC 9112 2.2 has CRLF skipped"),
        "a head of LF LF": Trick(b"GET / HTTP/1.1\r\nHost: a\n\n" + EVIL, 400, "Garden T16"),
        "LF CR": Trick(b"GET / HTTP/1.1\n\rHost: a\n\r\n\r", 400, "RFC 9112 2.2"),
    }  # fmt: skip
    return found


def starts() -> dict[str, Trick]:
    """Request lines: methods, targets, versions."""
    starts = {
        "no version": (b"GET /", 400, "HTTP/0.9; Garden S9"),
        "no version but a space": (b"GET / ", 400, "HTTP/0.9"),
        "a bare LF inside": (b"GET /\nHTTP/1.1", 400, "aiohttp #7719; Garden S9; llhttp #877"),
        "a bare CR inside": (b"GET /\rHTTP/1.1", 400, "RFC 9112 3"),
        "two spaces": (b"GET  / HTTP/1.1", 400, "RFC 9112 3 allows to refuse"),
        "tabs": (b"GET\t/\tHTTP/1.1", 400, "Http11Probe REQLINE-TAB"),
        "a space behind": (b"GET / HTTP/1.1 ", 400, "RFC 9112 3"),
        "a space before": (b" GET / HTTP/1.1", 400, "RFC 9112 2.2"),
        "a space in the target": (b"GET /a b HTTP/1.1", 400, "RFC 9112 3.2; nginx CVE-2013-4547"),
        "a version in the target": (
            b"GET / HTTP/1.1 HTTP/1.1", 400, "Apache CVE-2023-25690: what a space splits",
        ),
        "NUL in the target": (b"GET /\x00 HTTP/1.1", 400, "RFC 9112 3.2"),
        "beyond ASCII in the target": (b"GET /\xc3\xa4 HTTP/1.1", 400, "RFC 3986; Garden S7"),
        "a fragment": (b"GET /a#b HTTP/1.1", 400, "HAProxy CVE-2023-45539"),
        "a target of no form": (b"GET ! HTTP/1.1", 400, "Garden S7"),
        "a path without its slash": (b"GET evil HTTP/1.1", 400, "RFC 9112 3.2"),
        "a target that begins with @": (b"GET @evil/ HTTP/1.1", 400, "Kettle 2017"),
        "asterisk and GET": (b"GET * HTTP/1.1", 400, "RFC 9112 3.2.4"),
        "authority and GET": (b"GET a:80 HTTP/1.1", 400, "RFC 9112 3.2.3"),
        "CONNECT": (b"CONNECT a:80 HTTP/1.1", 501, "RFC 9110 9.3.6: for forward proxies"),
        "connect": (b"connect / HTTP/1.1", 501, "workers that make capitals of it"),
        "CONNECT with a path": (b"CONNECT / HTTP/1.1", 501, "a 2xx would end HTTP there"),
        "another scheme": (b"GET ftp://a/ HTTP/1.1", 400, "RFC 9112 3.2.2"),
        "user and host": (b"GET http://b@a/ HTTP/1.1", 400, "RFC 9110 4.2.4"),
        "backslash in the authority": (b"GET http://a\\@b/ HTTP/1.1", 400, "WHATWG or RFC 3986"),
        "no authority": (b"GET http:///b HTTP/1.1", 400, "RFC 9110 4.2.1"),
        "another host": (b"GET http://b/ HTTP/1.1", 400, "RFC 9112 3.2.2; Kettle 2017"),
        "another port": (b"GET http://a:81/ HTTP/1.1", 400, "RFC 9112 3.2.2"),
        "method of symbols": (b"G=\":<>(e),[T];? / HTTP/1.1", 400, "Garden S6"),
        "method with NUL": (b"G\x00T / HTTP/1.1", 400, "Garden S40"),
        "method with a colon": (b"GET: / HTTP/1.1", 400, "aiohttp CVE-2024-23829"),
        "endless method": (b"A" * 300 + b" / HTTP/1.1", 501, "RFC 9112 3"),
        "HTTP/2": (b"GET / HTTP/2.0", 505, "RFC 9110 15.6.6"),
        "HTTP/0.9 in words": (b"GET / HTTP/0.9", 505, "RFC 9110 15.6.6; llhttp #877"),
        "HTTP/1.10": (b"GET / HTTP/1.10", 400, "RFC 9112 2.3: one digit"),
        "HTTP/1.32": (b"GET / HTTP/1.32", 400, "Garden S5"),
        "HTTP/01.1": (b"GET / HTTP/01.1", 400, "RFC 9112 2.3"),
        "HTTP/1,1": (b"GET / HTTP/1,1", 400, "aiohttp CVE-2024-23829"),
        "HTTP/1.": (b"GET / HTTP/1.", 400, "RFC 9112 2.3"),
        "HTTP/1. 1": (b"GET / HTTP/1. 1", 400, "RFC 9112 2.3"),
        "HTTP/-1.1": (b"GET / HTTP/-1.1", 400, "Garden S24"),
        "HTTP/4294967297.1": (b"GET / HTTP/4294967297.1", 400, "Garden S24 (libevent)"),
        "HTTP/CR CR 1.1": (b"GET / HTTP/\r\r1.1", 400, "fasthttp #1703; Garden S15"),
        "http/1.1": (b"GET / http/1.1", 400, "RFC 9112 2.3: its case counts"),
        "ICAP": (b"GET / ICAP/1.0", 400, "llhttp speaks it"),
        "RTSP": (b"OPTIONS * RTSP/1.0", 400, "llhttp speaks it"),
    }  # fmt: skip
    found = {
        f"start {name}": Trick(start + b"\r\n" + HOST + b"\r\n", status, source)
        for name, (start, status, source) in starts.items()
    }
    found["start of HTTP/2"] = Trick(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 505, "RFC 9113 3.4"
    )
    found["start of TLS"] = Trick(
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "RFC 8446 5.1"
    )
    found["start of SSH"] = Trick(b"SSH-2.0-OpenSSH_9.2\r\n", 400, "RFC 4253 4.2")
    found["start of memcached"] = Trick(b"set k 0 0 1\r\n1\r\n", 400, "Kettle 2017")
    return found


def hosts() -> dict[str, Trick]:
    """Two values for the host of a request."""
    blocks = {
        "none": (b"", "RFC 9112 3.2"),
        "twice": (HOST + b"Host: b\r\n", "RFC 9112 3.2"),
        "twice the same": (HOST * 2, "RFC 9112 3.2"),
        "twice in two spellings": (HOST + b"hOST: a\r\n", "RFC 9112 3.2"),
        "empty": (b"Host:\r\n", "RFC 9112 3.2: it has to be that of the target"),
        "two in one": (b"Host: a, b\r\n", "RFC 9110 7.2"),
        "with a comma": (b"Host: a,b\r\n", "one value to us, two to who reads X-Forwarded-Host"),
        "with a path": (b"Host: a/b\r\n", "RFC 9112 3.2: invalid is 400"),
        "with a user": (b"Host: b@a\r\n", "RFC 9110 4.2.4"),
        "with a query": (b"Host: a?b\r\n", "RFC 9112 3.2"),
        "with a space": (b"Host: a b\r\n", "RFC 9112 3.2"),
        "with NUL": (b"Host: a\x00.b\r\n", "Garden T12"),
        "with two ports": (b"Host: a:1:2\r\n", "RFC 3986 3.2.3"),
        "with a port of letters": (
            b"Host: a:b\r\n",
            "RFC 3986 3.2.3; Kettle 2018",
        ),
        "with an endless port": (b"Host: a:999999\r\n", "RFC 3986 3.2.3"),
        "half a bracket": (b"Host: [::1\r\n", "RFC 3986 3.2.2"),
        "something behind a bracket": (b"Host: [::1]b\r\n", "RFC 3986 3.2.2"),
        "with a space before the colon": (b"Host : a\r\n", "RFC 9112 5.1; Kettle 2025: masked"),
        "behind a space": (b" Host: a\r\n", "Kettle 2025: masked"),
        "folded": (b"Host:\r\n a\r\n", "RFC 9112 5.2; Kettle 2025: masked"),
        "folded, and another": (b"Host: a\r\nX: y\r\n Host: b\r\n", "Kettle 2025: masked"),
        "taken away by Connection": (b"Connection: Host\r\n" + HOST, "RFC 9110 7.6.1"),
    }
    return {
        f"host {name}": Trick(get(block), 400, source) for name, (block, source) in blocks.items()
    }


def wishes() -> dict[str, Trick]:
    """Expect and Connection, bent."""
    expect = b"Content-Length: 31\r\nExpect: "
    return {
        "expect with a blank": Trick(
            post(expect + b"y 100-continue\r\n", EVIL), 417, "Kettle 2025: obfuscated Expect"
        ),
        "expect something else": Trick(post(expect + b"y\r\n", EVIL), 417, "RFC 9110 10.1.1"),
        "expect folded": Trick(
            post(expect + b"\r\n 100-continue\r\n", EVIL), 400, "Akamai CVE-2025-32094"
        ),
        "expect taken away by Connection": Trick(
            post(b"Connection: Expect\r\n" + expect + b"100-continue\r\n", EVIL), 400, "Kettle 2025"
        ),
        "connection of no tokens": Trick(get(HOST + b"Connection: a b\r\n"), 400, "RFC 9110 7.6.1"),
        "connection with a parameter": Trick(
            get(HOST + b"Connection: close;q=1\r\n"), 400, "RFC 9110 7.6.1"
        ),
    }  # fmt: skip


HEADS = lengths() | codings() | both() | lines() | starts() | hosts() | wishes()
"""Refused with a head that no worker gets to see."""
CHUNKS = {
    f"chunk {name}": Trick(post(CHUNKED, body), 400, source)
    for name, (body, source) in (BODIES | REQUEST_BODIES).items()
}
"""Refused in the middle of a body."""
REQUESTS = HEADS | CHUNKS
