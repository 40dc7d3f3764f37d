"""Only a trusted proxy can report where a request came from, whatever spelling a client tries.

This includes the forwarding fields that `http1/request` writes for a worker.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.config import Forwarding
from penstock_proxy.errors import RejectedError
from penstock_proxy.http1 import parser
from penstock_proxy.http1.forwarded import ForwardedInfo, read_trusted
from penstock_proxy.http1.request import HeaderRewriter, request_trailers
from penstock_worker.net.trusted_proxies import TrustedProxies

PROXIES = ("10.0.0.0/8", "2001:db8:1::/48")


def trusted_info(
    text: str, header: str = "x-forwarded", trusted: tuple[str, ...] = PROXIES
) -> ForwardedInfo:
    received: dict[bytes, list[bytes]] = {}
    for line in text.encode().split(b"\n"):
        name, _, value = line.partition(b":")
        received.setdefault(name.strip().lower(), []).append(value.strip())
    return read_trusted(received, TrustedProxies(trusted), header)  # type: ignore[arg-type]


def worker_sees(
    fields: bytes,
    *,
    trusted: bool = False,
    address: str = "192.0.2.9",
    port: int = 0,
    start: bytes = b"GET / HTTP/1.1",
    extra: bytes = b"",
    host: bytes = b"shop.example",
    scheme: bytes = b"http",
    **terms: object,
) -> list[tuple[str, str]]:
    """The fields of a request as a worker gets them, in order, without the request id."""
    forwarding = Forwarding.model_validate(terms)
    using = HeaderRewriter(PROXIES, 1000, scheme, port=8000, forwarding=forwarding)
    if trusted and port:
        using = using.at_port(port)
    head = start + b"\r\nHost: " + host + b"\r\n" + fields + b"\r\n"
    line = parser.parse_request_line(head)
    prepared = using.prepare(line, head[line.end :], trusted=trusted)
    out = prepared.fields + using.connection_fields(address, port, extra, trusted=trusted) + b"id"
    lines = [one.partition(": ") for one in out.decode("latin-1").split("\r\n")]
    assert lines.pop() == ("X-Request-ID", ": ", "id")
    return [(name, value) for name, _, value in lines]


OURS = [
    ("Host", "shop.example"),
    ("Via", "1.1 penstock"),
    ("X-Forwarded-Proto", "http"),
    ("X-Forwarded-Host", "shop.example"),
    ("X-Forwarded-For", "192.0.2.9"),
    ("X-Forwarded-Port", "8000"),
]


@pytest.mark.parametrize(
    ("nodes", "hops"),
    [
        ("", ()),
        ("203.0.113.1", ("203.0.113.1",)),
        ("6.6.6.6, 203.0.113.1", ("203.0.113.1",)),
        ("6.6.6.6, 203.0.113.1, 10.0.0.7", ("203.0.113.1", "10.0.0.7")),
        ("10.6.6.6, 203.0.113.1, 10.0.0.7,10.0.0.8", ("203.0.113.1", "10.0.0.7", "10.0.0.8")),
        ("10.0.0.6, 10.0.0.7", ("10.0.0.6", "10.0.0.7")),
        ("6.6.6.6, unknown, 10.0.0.7", ("10.0.0.7",)),
        ("6.6.6.6, _hidden", ()),
        ("203.0.113.1:4711", ("203.0.113.1",)),
        ("[2001:db8::9]:4711", ("2001:db8::9",)),
        ("2001:0DB8::0009", ("2001:db8::9",)),
        ("::ffff:203.0.113.1", ("203.0.113.1",)),
        ("6.6.6.6, ::ffff:10.0.0.1", ("6.6.6.6", "10.0.0.1")),
        ("6.6.6.6 203.0.113.1", ()),
        ("0x7f.1", ()),
        ("<script>", ()),
        (", ,203.0.113.1,,", ("203.0.113.1",)),
        ("10.0.0.1," * 40 + "10.0.0.2", ("10.0.0.1",) * 31 + ("10.0.0.2",)),
    ],
)
def test_a_list_is_trusted_back_to_the_first_untrusted_address(
    nodes: str, hops: tuple[str, ...]
) -> None:
    assert trusted_info(f"X-Forwarded-For: {nodes}").hops == hops
    halves = nodes.partition(",")
    assert trusted_info(f"X-Forwarded-For: {halves[0]}\nX-Forwarded-For: {halves[2]}").hops == hops


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("X-Forwarded-Proto: http, HTTPS", ForwardedInfo(proto=b"https")),
        ("X-Forwarded-Proto: https\nX-Forwarded-Proto: http", ForwardedInfo(proto=b"http")),
        ("X-Forwarded-Proto: java script", ForwardedInfo()),
        ("X-Forwarded-Host: evil, shop.example:8443", ForwardedInfo(host=b"shop.example:8443")),
        ("X-Forwarded-Host: [2001:db8::1]:8443", ForwardedInfo(host=b"[2001:db8::1]:8443")),
        ("X-Forwarded-Host: a/b", ForwardedInfo()),
        ('X-Forwarded-Host: a"b', ForwardedInfo()),
        ("X-Forwarded-Port: 1, 443", ForwardedInfo(port=b"443")),
        ("X-Forwarded-Port: 65536", ForwardedInfo()),
        ("X-Forwarded-Port: 0", ForwardedInfo()),
        ("X-Forwarded-Port: 00443", ForwardedInfo(port=b"443")),
        ("X-Forwarded-Port: https", ForwardedInfo()),
        ("Forwarded: for=1.2.3.4;proto=https", ForwardedInfo()),
    ],
)
def test_the_nearest_proxys_value_counts_if_it_is_well_formed(
    text: str, found: ForwardedInfo
) -> None:
    assert trusted_info(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ForwardedInfo()),
        ("for=203.0.113.1", ForwardedInfo(("203.0.113.1",))),
        (
            'For="[2001:db8::9]:47011";Proto=HTTPS;host="shop.example"',
            ForwardedInfo(("2001:db8::9",), b"https", b"shop.example"),
        ),
        (
            "for=6.6.6.6;proto=https, for=203.0.113.1;proto=http , for=10.0.0.1;by=10.0.0.2",
            ForwardedInfo(("203.0.113.1", "10.0.0.1"), b"http"),
        ),
        ('for="203.0.113.1\\:80"', ForwardedInfo(("203.0.113.1",))),
        ("for=_gazonk, for=10.0.0.1", ForwardedInfo(("10.0.0.1",))),
        ("for=unknown", ForwardedInfo()),
        ("proto=https, for=10.0.0.1", ForwardedInfo(("10.0.0.1",))),
        # Not the grammar of RFC 7239, and therefore nothing.
        ("for=203.0.113.1;for=6.6.6.6", ForwardedInfo()),
        ("for=[2001:db8::9]", ForwardedInfo()),
        ('for="203.0.113.1', ForwardedInfo()),
        ("for=203.0.113.1 for=6.6.6.6", ForwardedInfo()),
        ("for = 203.0.113.1", ForwardedInfo()),
        ("203.0.113.1", ForwardedInfo()),
        ('for="a, for=6.6.6.6, for="203.0.113.1"', ForwardedInfo()),
    ],
)
def test_forwarded_is_read_by_its_grammar(text: str, found: ForwardedInfo) -> None:
    assert trusted_info(f"Forwarded: {text}", "forwarded") == found
    assert trusted_info(f"Forwarded: {text}\nX-Forwarded-For: 6.6.6.6", "forwarded") == found


def test_a_worker_gets_what_the_proxy_sees() -> None:
    assert worker_sees(b"") == OURS
    via = worker_sees(b"", start=b"GET / HTTP/1.0")
    assert ("Via", "1.0 penstock") in via
    unix = dict(worker_sees(b"", address=""))
    assert unix["X-Forwarded-For"] == "unknown"
    link = dict(worker_sees(b"", address="fe80::1%eth0"))
    assert link["X-Forwarded-For"] == "fe80::1"
    assert dict(worker_sees(b"", port=443))["X-Forwarded-Port"] == "443"


def test_via_is_continued_or_left_alone() -> None:
    received = b"Via: 1.0 fred\r\nvia: 1.1 p.example (Apache/1.1)\r\n"
    found = dict(worker_sees(received))
    assert found["Via"] == "1.0 fred, 1.1 p.example (Apache/1.1), 1.1 penstock"
    left = [pair for pair in worker_sees(received, via="") if pair[0].lower() == "via"]
    assert left == [("Via", "1.0 fred"), ("via", "1.1 p.example (Apache/1.1)")]


@pytest.mark.parametrize(
    ("address", "node"),
    [("192.0.2.9", "192.0.2.9"), ("2001:db8::1", '"[2001:db8::1]"'), ("", "unknown"),
     ("fe80::1%eth0", '"[fe80::1]"')],
)  # fmt: skip
def test_forwarded_carries_the_same_information(address: str, node: str) -> None:
    found = worker_sees(b"", address=address, forwarded=True, x_forwarded=False, via="")
    assert found == [("Host", "shop.example"), ("Forwarded", f"for={node};proto=http")]


def test_forwarded_of_a_trusted_proxy_is_continued() -> None:
    received = b'Forwarded: for="[2001:db8:1::5]";proto=https;host=www.example, for=10.0.0.3\r\n'
    found = worker_sees(
        received, trusted=True, address="10.0.0.4", forwarded=True, trust="forwarded", via=""
    )
    assert found == [
        ("Host", "shop.example"),
        ("Forwarded", 'for="[2001:db8:1::5]";proto=https;host="www.example", for=10.0.0.3'),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "www.example"),
        ("X-Forwarded-Port", "443"),
        ("X-Forwarded-For", "2001:db8:1::5, 10.0.0.3, 10.0.0.4"),
        ("Forwarded", "for=10.0.0.4;proto=http"),
    ]


def test_only_the_header_that_the_proxies_write_is_trusted() -> None:
    received = b"Forwarded: for=6.6.6.6;proto=https\r\nX-Forwarded-For: 203.0.113.1\r\n"
    found = worker_sees(received, trusted=True, address="10.0.0.1")
    assert "6.6.6.6" not in str(found)
    assert ("X-Forwarded-For", "203.0.113.1, 10.0.0.1") in found
    received = (
        b"Forwarded: for=203.0.113.1\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: evil\r\n"
    )
    found = worker_sees(received, trusted=True, address="10.0.0.1", trust="forwarded")
    assert "6.6.6.6" not in str(found)
    assert "evil" not in str(found)
    assert ("X-Forwarded-For", "203.0.113.1, 10.0.0.1") in found


# What a trusted proxy reports, the Host of its request, its own port by the PROXY header (0: none),
# and our scheme; then protocol, host and port for the worker. Our own port is 8000.
REPORTS = [
    # It reports nothing: what we see ourselves.
    ({}, "shop.example", 0, "http", ("http", "shop.example", "8000")),
    ({}, "shop.example:9000", 0, "https", ("https", "shop.example:9000", "8000")),
    ({}, "shop.example", 443, "http", ("http", "shop.example", "443")),
    ({"For": "203.0.113.1"}, "shop.example", 443, "http", ("http", "shop.example", "443")),
    # A port, whatever else but a port in the host.
    ({"Port": "8443"}, "shop.example", 443, "http", ("http", "shop.example", "8443")),
    ({"Port": "8443", "Proto": "https"}, "shop.example", 0, "http",
     ("https", "shop.example", "8443")),
    ({"Port": "8443", "Host": "ex.org"}, "shop.example", 0, "http", ("http", "ex.org", "8443")),
    ({"Port": "65536", "Proto": "https"}, "shop.example", 0, "http",
     ("https", "shop.example", "443")),
    # A protocol: the port of Host, which the proxy has passed on, or the usual one.
    ({"Proto": "https"}, "shop.example", 0, "http", ("https", "shop.example", "443")),
    ({"Proto": "https"}, "shop.example", 8080, "http", ("https", "shop.example", "443")),
    ({"Proto": "http"}, "shop.example", 0, "https", ("http", "shop.example", "80")),
    ({"Proto": "https"}, "shop.example:8443", 0, "http", ("https", "shop.example:8443", "8443")),
    ({"Proto": "https"}, "[2001:db8::1]", 0, "http", ("https", "[2001:db8::1]", "443")),
    ({"Proto": "wss"}, "shop.example", 0, "http", ("wss", "shop.example", "443")),
    ({"Proto": "gopher"}, "shop.example", 443, "http", ("gopher", "shop.example", "443")),
    # A host: its port, or the usual one.
    ({"Host": "ex.org"}, "shop.example:9000", 0, "http", ("http", "ex.org", "80")),
    ({"Host": "ex.org"}, "shop.example", 8080, "https", ("https", "ex.org", "443")),
    ({"Host": "ex.org:8443"}, "shop.example", 443, "http", ("http", "ex.org:8443", "8443")),
    ({"Host": "ex.org:8443", "Proto": "https"}, "shop.example", 0, "http",
     ("https", "ex.org:8443", "8443")),
    ({"Host": "[2001:db8::1]:8443", "Proto": "https"}, "shop.example", 0, "http",
     ("https", "[2001:db8::1]:8443", "8443")),
    ({"Host": "ex.org:8443", "Port": "443", "Proto": "https"}, "shop.example", 0, "http",
     ("https", "ex.org:8443", "8443")),
    # A host whose port is none is no host.
    ({"Host": "ex.org:99999", "Proto": "https"}, "shop.example", 0, "http",
     ("https", "shop.example", "443")),
    ({"Host": "ex.org:0", "Proto": "https"}, "shop.example:8443", 0, "http",
     ("https", "shop.example:8443", "8443")),
    ({"Host": "ex.org", "Proto": "https"}, "shop.example:9000", 8080, "http",
     ("https", "ex.org", "443")),
]  # fmt: skip


def way(fields: bytes, host: str, port: int, scheme: str, **how: Any) -> tuple[str, str, str]:
    """Protocol, host and port of the client's connection, as a worker gets them."""
    found = worker_sees(fields, host=host.encode(), port=port, scheme=scheme.encode(), **how)
    names = [name for name, _ in found]
    for name in ("X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-For"):
        assert names.count(name) == 1
    told = dict(found)
    return told["X-Forwarded-Proto"], told["X-Forwarded-Host"], told["X-Forwarded-Port"]


@pytest.mark.parametrize(("report", "host", "port", "scheme", "expected"), REPORTS)
def test_what_one_believed_field_says_no_other_contradicts(
    report: dict[str, str], host: str, port: int, scheme: str, expected: tuple[str, str, str]
) -> None:
    fields = "".join(f"X-Forwarded-{name}: {value}\r\n" for name, value in report.items()).encode()
    assert way(fields, host, port, scheme, trusted=True) == expected
    # The same report of a stranger counts for nothing.
    assert way(fields, host, port, scheme) == (scheme, host, str(port or 8000))
    if "Port" not in report:
        pairs = [f'{name.lower()}="{value}"' for name, value in report.items()]
        forwarded = f"Forwarded: {';'.join(pairs)}\r\n".encode() if pairs else b""
        how = {"trusted": True, "trust": "forwarded"}
        assert way(forwarded, host, port, scheme, **how) == expected
        # And the one that is not believed adds nothing to it.
        other = b"X-Forwarded-Port: 1\r\nX-Forwarded-Host: evil:2\r\nX-Forwarded-Proto: evil\r\n"
        assert way(forwarded + other, host, port, scheme, **how) == expected


@pytest.mark.parametrize("report", ["", "Host", "Proto", "Host Proto"])
@pytest.mark.parametrize("host", ["ex.org", "ex.org:8443", "[2001:db8::1]:8443"])
@pytest.mark.parametrize("port", [0, 443])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_port_of_a_believed_host_is_the_one_that_is_told(
    report: str, host: str, port: int, scheme: str
) -> None:
    values = {"Host": host, "Proto": "https"}
    fields = "".join(f"X-Forwarded-{name}: {values[name]}\r\n" for name in report.split())
    proto, told_host, told_port = way(fields.encode(), host, port, scheme, trusted=True)
    assert told_host == host
    if report:
        assert told_port == (
            "8443" if host.endswith(":8443") else {"http": "80", "https": "443"}[proto]
        )
    else:
        assert told_port == str(port or 8000)


def test_each_port_of_a_proxy_header_has_a_rewriter_of_its_own() -> None:
    using = HeaderRewriter(PROXIES, 1000, port=8000)
    assert using.at_port(443) is using.at_port(443)
    assert using.at_port(80) is not using.at_port(443)
    kept = [using.at_port(port) for port in range(1, 100)]
    assert sum(one is using.at_port(port) for port, one in enumerate(kept, 1)) <= 16


EVIL = "evil"
NAMES = (
    "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port",
    "X-Forwarded-Server", "X-Forwarded", "Forwarded", "X-Real-IP", "X-Client-IP", "Client-Cert",
    "Client-Cert-Chain", "True-Client-IP", "CF-Connecting-IP", "X-Original-Forwarded-For",
    "X-Original-Host", "X-Rewrite-URL", "X-SSL-Client-DN", "Front-End-Https", "X-Request-ID",
)  # fmt: skip


@st.composite
def disguises(draw: st.DrawFn) -> str:
    """A name as it might be spelt to get past us."""
    name = draw(st.sampled_from(NAMES))
    name = "".join(draw(st.sampled_from((one.lower(), one.upper()))) for one in name)
    return name.replace("-", draw(st.sampled_from(("-", "_", ".", "-"))))


@given(
    st.lists(st.tuples(disguises(), st.sampled_from((EVIL, "66.6.6.6", f" {EVIL} , {EVIL}", ""))),
             max_size=8),
    st.lists(st.sampled_from((*NAMES, "close", "via")), max_size=3),
    st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_no_forwarding_field_of_an_untrusted_client_reaches_a_worker(
    fields: list[tuple[str, str]], nominated: list[str], x_forwarded: bool, forwarded: bool
) -> None:
    received = "".join(f"{name}: {value}\r\n" for name, value in fields)
    # What Connection names is dropped; what the proxy sets itself must not be.
    received += f"Connection: {', '.join(nominated)}\r\n" if nominated else ""
    terms: dict[str, Any] = {"x_forwarded": x_forwarded, "forwarded": forwarded}
    assert worker_sees(received.encode(), **terms) == worker_sees(b"", **terms)
    trailers = request_trailers(received.encode(), frozenset())
    assert trailers == b""


@given(
    st.lists(st.sampled_from(("66.6.6.6", "10.6.6.6", "2001:db8:1::6", EVIL, "", "::1", "66")),
             max_size=6),
    st.lists(st.sampled_from(("10.0.0.1", "10.0.0.2", "2001:db8:1::7")), max_size=4),
)  # fmt: skip
def test_a_client_behind_trusted_proxies_cannot_add_hops(
    made_up: list[str], proxies: list[str]
) -> None:
    """Each proxy appends the address of its peer; the peer of the first one was the client."""
    way = ["203.0.113.1", *proxies]
    received = ", ".join([*made_up, *way[:-1]]) if proxies else None
    fields = b"" if received is None else f"X-Forwarded-For: {received}\r\n".encode()
    found = dict(worker_sees(fields, trusted=bool(proxies), address=way[-1]))
    assert found["X-Forwarded-For"] == ", ".join(way)


@given(st.binary(max_size=60).filter(lambda value: not set(value) & set(b"\0\r\n")))
def test_no_value_from_a_trusted_proxy_makes_another_line(value: bytes) -> None:
    names = (b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"X-Forwarded-Port",
             b"Forwarded")  # fmt: skip
    fields = b"".join(name + b": " + value + b"\r\n" for name in names)
    for header in ("x-forwarded", "forwarded"):
        try:
            found = worker_sees(fields, trusted=True, forwarded=True, trust=header)
        except RejectedError:
            return
        assert [name for name, _ in found if name in dict(OURS)].count("X-Forwarded-For") == 1
        assert {name for name, _ in found} <= {*dict(OURS), "Forwarded"}
        for name, text in found:
            assert text.isprintable(), name
