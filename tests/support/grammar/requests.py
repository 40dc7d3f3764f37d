"""Requests, and what a worker gets of them."""

from typing import Final

from tests.support.grammar import Row, chunks, get, post

REQUESTS: Final = {
    # -- Start line
    "empty lines in front": Row("repaired", ((b"\r\n\r\n" + get(), b"GET / HTTP/1.1\r\n"),)),
    "a line that ends in LF or CR alone": Row("400", (
        (b"GET / HTTP/1.1\nHost: a\n\n", b""),
        (get(b"X: y\n"), b""),
        (get(b"X: y\rZ: w\r\n"), b""),
    )),
    "a blank before the first field": Row("400", ((b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", b""),)),
    "a method": Row("taken", (
        (get(start=b"M-SEARCH!#$%&'*+.^_`|~ / HTTP/1.1"), b"M-SEARCH!#$%&'*+.^_`|~ / "),
        (get(start=b"get / HTTP/1.1"), b"get / "),
    )),
    "a method beyond 32 bytes": Row("501", ((get(start=b"A" * 33 + b" / HTTP/1.1"), b""),)),
    "`CONNECT`": Row("501", (
        (get(start=b"CONNECT a:80 HTTP/1.1"), b""),
        (get(start=b"connect / HTTP/1.1"), b""),
    )),
    "anything but one space between the parts": Row("400", (
        (get(start=b"GET  / HTTP/1.1"), b""),
        (get(start=b"GET\t/\tHTTP/1.1"), b""),
        (get(start=b"GET / HTTP/1.1 "), b""),
        (get(start=b"GET /a b HTTP/1.1"), b""),
    )),
    "a target in origin-form": Row("taken", (
        (get(start=b"GET //a/../b%2f?c=%00 HTTP/1.1"), b"GET //a/../b%2f?c=%00 HTTP/1.1\r\n"),
    )),
    "printable ASCII that a URI escapes": Row("taken", (
        (get(start=b'GET /"<a>\\^`{|}" HTTP/1.1'), b'GET /"<a>\\^`{|}" HTTP/1.1\r\n'),
    )),
    "other bytes in a target": Row("400", (
        (get(start=b"GET /\xc3\xa4 HTTP/1.1"), b""),
        (get(start=b"GET /\x00 HTTP/1.1"), b""),
        (get(start=b"GET /\x7f HTTP/1.1"), b""),
    )),
    "a fragment": Row("400", ((get(start=b"GET /a#b HTTP/1.1"), b""),)),
    "absolute-form": Row("repaired", (
        (get(start=b"GET http://A/b?c HTTP/1.1"), b"GET /b?c HTTP/1.1\r\nHost: A\r\n"),
        (get(start=b"GET HTTPS://a?b HTTP/1.1"), b"GET /?b HTTP/1.1\r\n"),
        (b"GET http://a:8/ HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a:8\r\n"),
    )),
    "absolute-form beside a Host of the same host": Row("repaired", (
        (get(start=b"GET http://a/ HTTP/1.1", host=b"Host: A:80\r\n"), b"Host: a\r\n"),
        (get(start=b"GET https://a:443/ HTTP/1.1"), b"Host: a:443\r\n"),
        (get(start=b"GET http://a:/ HTTP/1.1"), b"Host: a:\r\n"),
    )),
    "absolute-form beside a Host of another host": Row("400", (
        (get(start=b"GET http://b/ HTTP/1.1"), b""),
        (get(start=b"GET http://a:443/ HTTP/1.1"), b""),
        (get(start=b"GET https://a/ HTTP/1.1", host=b"Host: a:80\r\n"), b""),
    )),
    "absolute-form of another scheme": Row("400", ((get(start=b"GET ftp://a/ HTTP/1.1"), b""),)),
    "a user in a target": Row("400", ((get(start=b"GET http://b@a/ HTTP/1.1"), b""),)),
    "asterisk-form": Row("taken", (
        (get(start=b"OPTIONS * HTTP/1.1"), b"OPTIONS * HTTP/1.1\r\n"),
        (get(start=b"OPTIONS http://a HTTP/1.1"), b"OPTIONS * HTTP/1.1\r\n"),
    )),
    "a target of no form": Row("400", (
        (get(start=b"GET * HTTP/1.1"), b""),
        (get(start=b"GET a:80 HTTP/1.1"), b""),
        (get(start=b"GET a/b HTTP/1.1"), b""),
    )),
    "HTTP/1.0": Row("repaired", (
        (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\n"),
    )),
    "HTTP/1.2 to 1.9": Row("repaired", (
        (get(start=b"GET /a HTTP/1.2"), b"GET /a HTTP/1.1\r\n"),
        (get(start=b"GET /a HTTP/1.9"), b"GET /a HTTP/1.1\r\n"),
    )),
    "another major version": Row("505", (
        (get(start=b"GET / HTTP/2.0"), b""),
        (get(start=b"GET / HTTP/0.9"), b""),
    )),
    "a version of another form": Row("400", (
        (get(start=b"GET / http/1.1"), b""),
        (get(start=b"GET / HTTP/1.10"), b""),
        (get(start=b"GET /"), b""),
    )),
    # -- Fields
    "blanks and tabs around a value": Row("taken", (
        (get(b"X:\ty \t\r\n"), b"X:\ty \t\r\n"),
        (get(b"X:y\r\n"), b"X:y\r\n"),
        (get(host=b"Host:\ta\t\r\n"), b"Host: a\r\n"),
    )),
    "a blank before the colon": Row("400", (
        (get(b"X : y\r\n"), b""),
        (post(b"Content-Length\t: 5\r\n", b"hello"), b""),
    )),
    "a fold": Row("400", (
        (get(b"X: y\r\n z\r\n"), b""),
        (get(b"X: y\r\n\tz\r\n"), b""),
    )),
    "bytes beyond ASCII in a value": Row("taken", (
        (get(b"X: \xc3\xa4\xff\r\n"), b"X: \xc3\xa4\xff\r\n"),
    )),
    "CR, LF or NUL in a value": Row("400", (
        (get(b"X: y\x00\r\n"), b""),
        (get(b"X: y\rz\r\n"), b""),
        (get(b"X: y\nz\r\n"), b""),
    )),
    "another control character in a value": Row("400", (
        (get(b"X: \x1b[2J\r\n"), b""),
        (get(b"X: \x7f\r\n"), b""),
        (get(b"X: \x0b\r\n"), b""),
    )),
    "an empty value": Row("taken", ((get(b"X:\r\n"), b"X:\r\n"),)),
    "a line without a name or a colon": Row("400", (
        (get(b": y\r\n"), b""),
        (get(b"X\r\n"), b""),
    )),
    "a name that is no token": Row("400", (
        (get(b"X Y: z\r\n"), b""),
        (get(b"\xc3\xa4: z\r\n"), b""),
        (get(b"X(: z\r\n"), b""),
    )),
    "a name with anything but letters, digits and `-`": Row("dropped", (
        (get(b"X_Y: z\r\n"), b"x_y"),
        (get(b"X.Y: z\r\n"), b"x.y"),
    )),
    "a name more than once": Row("taken", ((get(b"X: y\r\nx: z\r\n"), b"X: y\r\nx: z\r\n"),)),
    "too many fields, or too long": Row("431", (
        (get(b"X: 123456789\r\n" * 101), b""),
        (get(b"X: " + b"y" * 70_000 + b"\r\n"), b""),
    )),
    # -- Host
    "none in HTTP/1.1": Row("400", (
        (get(host=b""), b""),
        (get(start=b"GET http://a/ HTTP/1.1", host=b""), b""),
    )),
    "two, also of one value": Row("400", (
        (get(b"Host: b\r\n"), b""),
        (get(b"host: a\r\n"), b""),
    )),
    "an empty one": Row("400", ((get(host=b"Host:\r\n"), b""),)),
    "a name or address, perhaps with a port": Row("taken", (
        (get(host=b"Host: a.b-c_d:8080\r\n"), b"Host: a.b-c_d:8080\r\n"),
        (get(host=b"Host: [::1]:80\r\n"), b"Host: [::1]:80\r\n"),
    )),
    "anything else": Row("400", (
        (get(host=b"Host: a/b\r\n"), b""),
        (get(host=b"Host: u@a\r\n"), b""),
        (get(host=b"Host: a,b\r\n"), b""),
        (get(host=b"Host: a:b\r\n"), b""),
        (get(host=b"Host: a:123456\r\n"), b""),
        (get(host=b"Host: [::1\r\n"), b""),
    )),
    # -- Content-Length and Transfer-Encoding
    "one length": Row("taken", (
        (post(b"Content-Length: 5\r\n", b"hello"), b"Content-Length: 5\r\n"),
        (post(b"Content-Length: 0\r\n"), b"Content-Length: 0\r\n"),
    )),
    "a length with tabs around it, or leading zeros": Row("repaired", (
        (post(b"Content-Length:\t5\r\n", b"hello"), b"Content-Length: 5\r\n"),
        (post(b"Content-Length: 5\t\r\n", b"hello"), b"Content-Length: 5\r\n"),
        (post(b"Content-Length: 005\r\n", b"hello"), b"Content-Length: 5\r\n"),
        (post(b"Content-Length: 010\r\n", b"helloworld"), b"Content-Length: 10\r\n"),
    )),
    "the same length in a list, or in several lines": Row("repaired", (
        (post(b"Content-Length: 5, 5\r\n", b"hello"), b"Content-Length: 5\r\n"),
        (
            post(b"Content-Length: 5\r\nX: y\r\ncontent-length: 5\r\n", b"hello"),
            b"Content-Length: 5\r\nX: y\r\nVia: ",
        ),
    )),
    "different lengths": Row("400", (
        (post(b"Content-Length: 5, 6\r\n", b"hello!"), b""),
        (post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!"), b""),
        (post(b"Content-Length: 5, 05\r\n", b"hello"), b""),
    )),
    "anything else for a length": Row("400", tuple(
        (post(b"Content-Length: " + v + b"\r\n", b"hello"), b"")
        for v in (
            b"", b"+5", b"-5", b"0x5", b"5_0", b"5 5", b"5,", b",5", b'"5"', b"5;a", b"1" * 19,
            b"\x0b5",
        )
    )),
    "neither length nor coding": Row("taken", ((post(b""), b"POST / HTTP/1.1\r\n"),)),
    "`chunked`, in any case, with tabs around it": Row("repaired", (
        (
            post(b"Transfer-Encoding:\tChunked\t\r\n", b"1\r\na\r\n0\r\n\r\n"),
            b"Transfer-Encoding: chunked\r\n",
        ),
    )),
    "`chunked` in two lines, or with an empty element": Row("400", tuple(
        (post(f, b"0\r\n\r\n"), b"")
        for f in (
            b"Transfer-Encoding: chunked\r\n" * 2, b"Transfer-Encoding: ,chunked\r\n",
            b"Transfer-Encoding: chunked,\r\n", b"Transfer-Encoding: chunked, chunked\r\n",
        )
    )),
    "another coding before `chunked`": Row("501", (
        (post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), b""),
    )),
    "another coding": Row("400", tuple(
        (post(b"Transfer-Encoding: " + v + b"\r\n", b"0\r\n\r\n"), b"")
        for v in (
            b"gzip", b"xchunked", b"identity", b"chunked, gzip", b"chunked;q=1", b"",
            b"\x0bchunked", b'"chunked"',
        )
    )),
    "a length beside a coding": Row("400", (
        (post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), b""),
    )),
    "a coding in HTTP/1.0": Row("400", (
        (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b""),
    )),
    # -- Chunks and trailers
    "an extension": Row("dropped", (
        (chunks(b'5;a;b=c;ext="d\\";\x80"\r\nhello\r\n0;f\r\n\r\n'), b"ext"),
    )),
    "blanks around the parts of an extension": Row("dropped", (
        (chunks(b"5 ;\text = b\r\nhello\r\n0\r\n\r\n"), b"ext"),
    )),
    "a size with leading zeros": Row("repaired", (
        (chunks(b"0" * 19 + b"5\r\nhello\r\n000\r\n\r\n"), b"\r\n0\r\n\r\n"),
    )),
    "blanks behind a size or an extension": Row("400", (
        (chunks(b"5 \r\nhello\r\n0\r\n\r\n"), b""),
        (chunks(b"5;a \r\nhello\r\n0\r\n\r\n"), b""),
    )),
    "anything else for a size or an extension": Row("400", tuple(
        (chunks(v + b"\r\nhello\r\n0\r\n\r\n"), b"")
        for v in (
            b"0x5", b"+5", b" 5", b"", b"5;", b"5;a=", b"5;=b", b'5;a="b', b"5;a\x00", b"1" * 19,
        )
    )),
    "a line of a chunk that ends in LF alone": Row("400", (
        (chunks(b"5\nhello\r\n0\r\n\r\n"), b""),
        (chunks(b"5\r\nhello\n0\r\n\r\n"), b""),
        (chunks(b"5\r\nhello\r\n0\r\n\n"), b""),
    )),
    "trailers": Row("taken", ((chunks(b"0\r\nDigest: x\r\n\r\n"), b"0\r\nDigest: x\r\n\r\n"),)),
    "a field that is not allowed in trailers": Row("dropped", tuple(
        (chunks(b"0\r\nZ: y\r\n" + n + b": zz9\r\n\r\n"), b"zz9")
        for n in (
            b"Host", b"Cookie", b"Authorization", b"Range", b"If-Match", b"Cache-Control",
            b"Trailer", b"Content-Type", b"TE", b"X-Forwarded-For", b"X_Y",
        )
    )),
    "a trailer that Connection names": Row("dropped", (
        (
            post(
                b"Connection: x-mine\r\nTransfer-Encoding: chunked\r\n",
                b"0\r\nX-Mine: zz9\r\n\r\n",
            ),
            b"zz9",
        ),
    )),
    "`Content-Length` or `Transfer-Encoding` in trailers": Row("400", (
        (chunks(b"0\r\nContent-Length: 5\r\n\r\n"), b""),
        (chunks(b"0\r\nX: y\r\ntransfer-encoding: chunked\r\n\r\n"), b""),
    )),
    "malformed trailers": Row("400", (
        (chunks(b"0\r\nX : y\r\n\r\n"), b""),
        (chunks(b"0\r\nX: y\r\n z\r\n\r\n"), b""),
        (chunks(b"0\r\nX\r\n\r\n"), b""),
    )),
    # -- Connection, Upgrade, TE, Expect and others
    "a list of options": Row("dropped", (
        (get(b"Connection: , keep-alive,,X-Mine\t,\r\nX-Mine: zz9\r\n"), b"zz9"),
        (get(b"Connection: a\r\nConnection: b\r\n"), b"connection"),
    )),
    "an option that is no token": Row("400", (
        (get(b"Connection: close;q=1\r\n"), b""),
        (get(b"Connection: a b\r\n"), b""),
    )),
    "an option that names a field of framing": Row("400", tuple(
        (post(b"Content-Length: 5\r\nConnection: " + n + b"\r\n", b"hello"), b"")
        for n in (b"Host", b"Content-Length", b"Transfer-Encoding", b"Expect")
    )),
    "fields of one hop": Row("dropped", tuple(
        (get(n + b": zz9\r\n"), b"zz9")
        for n in (
            b"Keep-Alive", b"Proxy-Connection", b"Proxy-Authorization", b"HTTP2-Settings",
            b"Upgrade",
        )
    )),
    "`Upgrade` that Connection names": Row("taken", (
        (
            get(b"Connection: upgrade\r\nUpgrade: websocket\r\n"),
            b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        ),
    )),
    "`Upgrade` to HTTP, in HTTP/1.0, or malformed": Row("dropped", (
        (get(b"Connection: upgrade\r\nUpgrade: h2c\r\n"), b"upgrade"),
        (get(b'Connection: upgrade\r\nUpgrade: "x"\r\n'), b"upgrade"),
        (get(b"Connection: upgrade\r\nUpgrade: x\r\n", start=b"GET / HTTP/1.0"), b"upgrade"),
    )),
    "`TE` with `trailers`": Row("repaired", (
        (
            get(b"TE: gzip;q=1,\tTrailers\r\nConnection: TE\r\n"),
            b"TE: trailers\r\nConnection: TE\r\n",
        ),
    )),
    "`TE` without it": Row("dropped", (
        (get(b"TE: gzip, x-trailers\r\nConnection: TE\r\n"), b"trailers"),
    )),
    "`Expect: 100-continue`": Row("repaired", (
        (
            post(b"Expect:\t100-Continue, ,100-continue\r\nContent-Length: 5\r\n", b"hello"),
            b"\r\nExpect: 100-continue\r\n",
        ),
    )),
    "`Expect` of nothing, or in HTTP/1.0": Row("dropped", (
        (post(b"Expect: ,\r\nContent-Length: 5\r\n", b"hello"), b"expect"),
        (b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", b"expect"),
    )),
    "`Expect` of something else": Row("417", (
        (post(b"Expect: 200-ok\r\nContent-Length: 5\r\n", b"hello"), b""),
        (post(b"Expect: y 100-continue\r\nContent-Length: 5\r\n", b"hello"), b""),
    )),
    "`Max-Forwards`": Row("taken", (
        (get(b"Max-Forwards: 3\r\n", start=b"TRACE / HTTP/1.1"), b"Max-Forwards: 3\r\n"),
    )),
}  # fmt: skip
