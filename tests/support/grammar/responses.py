"""A worker's responses, and what the client gets of them."""

from typing import Final

from tests.support.grammar import LENGTH, OK, Row, answer, answer_chunks

RESPONSES: Final = {
    # -- Status line
    "no reason, or not even its space": Row("repaired", (
        (b"HTTP/1.1 200\r\n" + LENGTH + b"\r\nok", b"HTTP/1.1 200 \r\n"),
        (b"HTTP/1.1 200 \r\n" + LENGTH + b"\r\nok", b"HTTP/1.1 200 \r\n"),
    )),
    "HTTP/1.0, and HTTP/1.2 to 1.9": Row("repaired", (
        (b"HTTP/1.0 200 OK\r\n" + LENGTH + b"\r\nok", b"HTTP/1.1 200 OK\r\n"),
        (b"HTTP/1.2 200 OK\r\n" + LENGTH + b"\r\nok", b"HTTP/1.1 200 OK\r\n"),
    )),
    "a status from 600 to 999": Row("taken", (
        (b"HTTP/1.1 999 No\r\n" + LENGTH + b"\r\nok", b"HTTP/1.1 999 No\r\n"),
    )),
    "anything else": Row("502", tuple(
        (v + b"\r\n" + LENGTH + b"\r\nok", b"")
        for v in (
            b"HTTP/1.1  200 OK", b"HTTP/1.1\t200 OK", b"HTTP/1.1 200OK", b"HTTP/1.1 099 No",
            b"HTTP/1.1 2000 OK", b"http/1.1 200 OK", b"HTTP/2 200 OK", b"HTTP/1.1 200 O\x00K",
            b"ICY 200 OK",
        )
    )),
    "an empty line in front": Row("502", ((b"\r\n" + answer(LENGTH), b""),)),
    "a line that ends in LF or CR alone": Row("502", (
        (b"HTTP/1.1 200 OK\n" + LENGTH + b"\r\nok", b""),
        (answer(b"X: y\n" + LENGTH), b""),
        (answer(b"X: y\rZ: w\r\n" + LENGTH), b""),
    )),
    # -- Fields
    "a blank before the colon": Row("repaired", (
        (answer(b"X\t : y\r\n" + LENGTH), b"X: y\r\n"),
        (answer(b"Content-Length : 2\r\n"), b"Content-Length: 2\r\n"),
    )),
    "a fold": Row("repaired", (
        (answer(b"X: y\r\n\t z\r\n \r\n" + LENGTH), b"X: y z \r\n"),
        (answer(b"Content-Length:\r\n 2\r\n"), b"OK\r\nContent-Length: 2\r\n\r\nok"),
    )),
    "a blank before the first field": Row("502", ((OK + b" X: y\r\n" + LENGTH + b"\r\nok", b""),)),
    "CR, LF, NUL or another control character in a value": Row("502", (
        (answer(b"X: y\x00\r\n" + LENGTH), b""),
        (answer(b"X: y\rz\r\n" + LENGTH), b""),
        (answer(b"X: \x1b\r\n" + LENGTH), b""),
    )),
    "a line without a name or a colon, or a name that is no token": Row("502", tuple(
        (answer(v + b"\r\n" + LENGTH), b"")
        for v in (b": y", b"X", b"X Y: z", b"X(: z")
    )),
    "bytes beyond ASCII in a value or a reason": Row("taken", (
        (
            b"HTTP/1.1 200 \xc3\xa4\r\nX: \xff\r\n" + LENGTH + b"\r\nok",
            b"HTTP/1.1 200 \xc3\xa4\r\nX: \xff\r\n",
        ),
    )),
    "any token for a name": Row("taken", ((answer(b"X_Y.z: y\r\n" + LENGTH), b"X_Y.z: y\r\n"),)),
    # -- Length and coding
    "the same length several times, tabs around it, leading zeros": Row("repaired", (
        (answer(b"Content-Length: 2\r\n" * 2), b"OK\r\nContent-Length: 2\r\n"),
        (answer(b"Content-Length: 2,\t2\r\n"), b"Content-Length: 2\r\n"),
        (answer(b"Content-Length:\t002\r\n"), b"Content-Length: 2\r\n"),
    )),
    "any other length": Row("502", tuple(
        (answer(b"Content-Length: " + v + b"\r\n"), b"")
        for v in (b"2, 3", b"+2", b"", b"0x2", b"2,", b"2 2")
    )),
    "a coding other than `chunked`": Row("502", tuple(
        (answer(b"Transfer-Encoding: " + v + b"\r\n", b"0\r\n\r\n"), b"")
        for v in (b"gzip, chunked", b"identity", b",chunked", b"chunked, chunked", b"")
    )),
    "a length beside a coding": Row("502", (
        (answer(LENGTH + b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"), b""),
    )),
    "neither": Row("repaired", ((answer(b""), b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"),)),
    "a chunked body in HTTP/1.0": Row("taken", (
        (
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            b"2\r\nok\r\n0\r\n\r\n",
        ),
    )),
    "a length in 204": Row("dropped", (
        (b"HTTP/1.1 204 No Content\r\n" + LENGTH + b"\r\n", b"content-length"),
    )),
    "a length in 304, or in an answer to HEAD": Row("taken", (
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b"Content-Length: 9\r\n"),
    )),
    # -- Chunks and trailers
    "blanks around the parts of an extension, and behind a size": Row("repaired", (
        (answer_chunks(b"2  \t\r\nok\r\n0 \r\n\r\n"), b"\r\n2\r\nok\r\n0\r\n\r\n"),
        (answer_chunks(b"2 ; a = b \r\nok\r\n0\r\n\r\n"), b"\r\n2\r\nok\r\n0\r\n\r\n"),
    )),
    "any other size or extension": Row("cut", tuple(
        (answer_chunks(v + b"\r\nok\r\n0\r\n\r\n"), b"")
        for v in (b"0x2", b"2;", b" 2", b"")
    )),
    "trailers": Row("taken", (
        (answer_chunks(b"2\r\nok\r\n0\r\nDigest: x\r\n\r\n"), b"0\r\nDigest: x\r\n\r\n"),
    )),
    "a field that is not allowed in trailers": Row("dropped", tuple(
        (answer_chunks(b"2\r\nok\r\n0\r\nZ: y\r\n" + n + b": zz9\r\n\r\n"), b"zz9")
        for n in (
            b"Content-Length", b"Transfer-Encoding", b"Host", b"Set-Cookie", b"Trailer",
            b"WWW-Authenticate", b"Authorization", b"Location", b"Content-Type", b"Connection",
            b"Date", b"Vary", b"Max-Forwards",
        )
    )),
    "a trailer that Connection names": Row("dropped", (
        (
            answer(
                b"Connection: X-Mine\r\nTransfer-Encoding: chunked\r\n",
                b"0\r\nX-Mine: zz9\r\n\r\n",
            ),
            b"zz9",
        ),
    )),
    "a blank before the colon or a fold in trailers": Row("repaired", (
        (answer_chunks(b"0\r\nX : y\r\n z\r\n\r\n"), b"0\r\nX: y z\r\n\r\n"),
    )),
    "otherwise malformed trailers": Row("cut", (
        (answer_chunks(b"0\r\nX\r\n\r\n"), b""),
        (answer_chunks(b"0\r\nX: y\n\r\n"), b""),
    )),
    # -- Interim responses
    "any status 1xx": Row("taken", (
        (
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answer(LENGTH),
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n",
        ),
    )),
    "`Connection: close` in one": Row("repaired", (
        (
            b"HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\n" + answer(LENGTH),
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
        ),
    )),
    "one that announces a body": Row("502", (
        (b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n" + answer(LENGTH), b""),
        (b"HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n" + answer(LENGTH), b""),
    )),
    "one of HTTP/1.0": Row("502", (
        (b"HTTP/1.0 100 Continue\r\n\r\n" + answer(LENGTH), b""),
        (b"HTTP/1.0 100 C\r\nConnection: keep-alive\r\n\r\n" + answer(LENGTH), b""),
    )),
    "more than 16": Row("502", ((b"HTTP/1.1 100 Continue\r\n\r\n" * 17 + answer(LENGTH), b""),)),
    "101 for a protocol that was not offered": Row("502", (
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", b""),
    )),
    # -- Connection and Upgrade
    "fields of one hop": Row("dropped", (
        (answer(b"Connection: X-Mine\r\nX-Mine: zz9\r\n" + LENGTH), b"zz9"),
        (answer(b"Keep-Alive: timeout=9\r\n" + LENGTH), b"keep-alive"),
        (answer(b"Proxy-Authenticate: zz9\r\n" + LENGTH), b"zz9"),
    )),
    "an option that is no token": Row("repaired", (
        (answer(b"Connection: keep-alive; x\r\n" + LENGTH), b"OK\r\nContent-Length: 2\r\n\r\nok"),
    )),
    "`Connection: Transfer-Encoding`": Row("taken", (
        (
            answer(
                b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
                b"2\r\nok\r\n0\r\n\r\n",
            ),
            b"2\r\nok\r\n0\r\n\r\n",
        ),
    )),
    "`Connection: Content-Length`": Row("502", (
        (answer(b"Connection: Content-Length\r\n" + LENGTH), b""),
    )),
    "`Upgrade` in 426": Row("repaired", (
        (
            b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\n" + LENGTH + b"\r\nok",
            b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
        ),
        (
            b"HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade, close\r\n"
            b"Upgrade: a/1\r\nUpgrade: b\r\n" + LENGTH + b"\r\nok",
            b"\r\nConnection: Upgrade\r\nUpgrade: a/1, b\r\n",
        ),
    )),
    "`Upgrade` in another response": Row("dropped", (
        (answer(b"Connection: upgrade\r\nUpgrade: h2,h2c\r\n" + LENGTH), b"upgrade"),
    )),
    "no `Date`": Row("repaired", ((answer(LENGTH), b"\r\nDate: "),)),
    "bytes behind a response": Row("dropped", ((answer(LENGTH, b"okzz9"), b"zz9"),)),
}  # fmt: skip
