"""The schemes that authenticate a connection are found wherever a field may have them."""

import pytest

from penstock_proxy.config import Forwarding
from penstock_proxy.http1.authentication import is_of_connection
from penstock_proxy.http1.parser import parse_request_line
from penstock_proxy.http1.request import HeaderRewriter
from penstock_proxy.http1.response import ResponseHeads, parse_response


@pytest.mark.parametrize(
    "value",
    [
        b"NTLM",
        b"ntlm",
        b"Negotiate",
        b"NEGOTIATE YIIJvwYGKwYBBQUCoIIJszCC==",
        b"NTLM TlRMTVNTUAABAAAA",
        b"Kerberos",
        b"Nego2 abc",
        b'Basic realm="a", NTLM',
        b'Basic realm="a",NTLM',
        b"Negotiate,NTLM",
        b'Digest realm="a", qop="auth,auth-int", nonce="x",\tNegotiate abc==, Basic realm="b"',
        b",NTLM",
    ],
)
def test_a_scheme_of_the_connection_is_found(value: bytes) -> None:
    assert is_of_connection(value)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Basic TlRMTTpOVExN",
        b"Bearer NTLM",
        b'Basic realm="NTLM"',
        b'Digest username="a", ntlm=1, negotiate = "b"',
        b"NTLMv2",
        b"Negotiate-more x",
        b"X-NTLM",
    ],
)
def test_another_scheme_is_none(value: bytes) -> None:
    assert not is_of_connection(value)


REWRITER = HeaderRewriter((), 100, forwarding=Forwarding())
LINE = b"GET / HTTP/1.1\r\n"


@pytest.mark.parametrize("name", [b"Authorization", b"PROXY-AUTHORIZATION"])
def test_a_request_is_known_by_its_credentials(name: bytes) -> None:
    line = parse_request_line(LINE)

    def authenticates(value: bytes) -> bool:
        block = b"Host: a\r\n" + name + b": " + value + b"\r\n\r\n"
        again = [REWRITER.prepare(line, block, trusted=False).authenticates for _ in range(2)]
        assert again[0] is again[1]
        return again[0]

    assert authenticates(b"Negotiate abc")
    assert authenticates(b"ntlm\tabc")
    assert not authenticates(b"Basic abc")


@pytest.mark.parametrize("name", [b"WWW-Authenticate", b"proxy-authenticate"])
def test_a_response_is_known_by_any_of_its_challenges(name: bytes) -> None:
    def head(*values: bytes, more: bytes = b"") -> bytes:
        lines = b"".join(name + b": " + value + b"\r\n" for value in values)
        return b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n" + more + lines + b"\r\n"

    assert parse_response(head(b"NTLM")).authenticates
    assert parse_response(head(b"Basic", b"Negotiate")).authenticates
    both = parse_response(head(b"Basic, Negotiate", more=b"Keep-Alive: timeout=7\r\n"))
    assert (both.authenticates, both.max_idle_s) == (True, 7.0)
    assert not parse_response(head(b"Basic", b"Digest a=b")).authenticates
    assert not parse_response(head(b"NTLM", more=b"Connection: close\r\n")).authenticates


def test_a_connection_that_carries_one_request_carries_more_of_the_client_it_belongs_to() -> None:
    heads = ResponseHeads(keeps_alive=False)
    plain = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    assert heads.read(plain).max_idle_s == 0.0
    assert heads.read(plain[:-2] + b"WWW-Authenticate: NTLM\r\n\r\n").max_idle_s == 60.0
