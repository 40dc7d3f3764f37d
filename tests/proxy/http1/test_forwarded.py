"""Nobody but a trusted proxy can say where a request came from, in whatever way it tries."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.config import Forwarding
from penstock_proxy.errors import RejectedError
from penstock_proxy.http1 import parser
from penstock_proxy.http1.forwarded import Claims, believed
from penstock_proxy.http1.request import HeaderRewriter, request_trailers
from penstock_worker.net.trusted_proxies import TrustedProxies

PROXIES = ("10.0.0.0/8", "2001:db8:1::/48")


def claims(text: str, language: str = "x-forwarded", trusted: tuple[str, ...] = PROXIES) -> Claims:
    said: dict[bytes, list[bytes]] = {}
    for line in text.encode().split(b"\n"):
        name, _, value = line.partition(b":")
        said.setdefault(name.strip().lower(), []).append(value.strip())
    return believed(said, TrustedProxies(trusted), language)  # type: ignore[arg-type]


def worker_sees(
    fields: bytes,
    *,
    trusted: bool = False,
    address: str = "192.0.2.9",
    port: int = 0,
    start: bytes = b"GET / HTTP/1.1",
    extra: bytes = b"",
    **terms: object,
) -> list[tuple[str, str]]:
    """The fields of a request as a worker gets them, in order, without the request id."""
    forwarding = Forwarding.model_validate(terms)
    using = HeaderRewriter(PROXIES, 1000, b"http", port=8000, terms=forwarding)
    head = start + b"\r\nHost: shop.example\r\n" + fields + b"\r\n"
    line = parser.parse_request_line(head)
    prepared = using.request(line, head[line.end :], trusted=trusted)
    out = prepared.out + using.of_connection(address, port, extra, trusted=trusted) + b"id"
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
def test_a_list_is_believed_back_to_the_first_who_is_not_trusted(
    nodes: str, hops: tuple[str, ...]
) -> None:
    assert claims(f"X-Forwarded-For: {nodes}").hops == hops
    halves = nodes.partition(",")
    assert claims(f"X-Forwarded-For: {halves[0]}\nX-Forwarded-For: {halves[2]}").hops == hops


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("X-Forwarded-Proto: http, HTTPS", Claims(proto=b"https")),
        ("X-Forwarded-Proto: https\nX-Forwarded-Proto: http", Claims(proto=b"http")),
        ("X-Forwarded-Proto: java script", Claims()),
        ("X-Forwarded-Host: evil, shop.example:8443", Claims(host=b"shop.example:8443")),
        ("X-Forwarded-Host: [2001:db8::1]:8443", Claims(host=b"[2001:db8::1]:8443")),
        ("X-Forwarded-Host: a/b", Claims()),
        ('X-Forwarded-Host: a"b', Claims()),
        ("X-Forwarded-Port: 1, 443", Claims(port=b"443")),
        ("X-Forwarded-Port: 65536", Claims()),
        ("X-Forwarded-Port: https", Claims()),
        ("Forwarded: for=1.2.3.4;proto=https", Claims()),
    ],
)
def test_the_nearest_proxys_word_counts_if_it_is_one(text: str, found: Claims) -> None:
    assert claims(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", Claims()),
        ("for=203.0.113.1", Claims(("203.0.113.1",))),
        (
            'For="[2001:db8::9]:47011";Proto=HTTPS;host="shop.example"',
            Claims(("2001:db8::9",), b"https", b"shop.example"),
        ),
        (
            "for=6.6.6.6;proto=https, for=203.0.113.1;proto=http , for=10.0.0.1;by=10.0.0.2",
            Claims(("203.0.113.1", "10.0.0.1"), b"http"),
        ),
        ('for="203.0.113.1\\:80"', Claims(("203.0.113.1",))),
        ("for=_gazonk, for=10.0.0.1", Claims(("10.0.0.1",))),
        ("for=unknown", Claims()),
        ("proto=https, for=10.0.0.1", Claims(("10.0.0.1",))),
        # Not the grammar of RFC 7239, and therefore nothing.
        ("for=203.0.113.1;for=6.6.6.6", Claims()),
        ("for=[2001:db8::9]", Claims()),
        ('for="203.0.113.1', Claims()),
        ("for=203.0.113.1 for=6.6.6.6", Claims()),
        ("for = 203.0.113.1", Claims()),
        ("203.0.113.1", Claims()),
        ('for="a, for=6.6.6.6, for="203.0.113.1"', Claims()),
    ],
)
def test_forwarded_is_read_by_its_grammar(text: str, found: Claims) -> None:
    assert claims(f"Forwarded: {text}", "forwarded") == found
    assert claims(f"Forwarded: {text}\nX-Forwarded-For: 6.6.6.6", "forwarded") == found


def test_a_worker_is_told_what_we_see() -> None:
    assert worker_sees(b"") == OURS
    via = worker_sees(b"", start=b"GET / HTTP/1.0")
    assert ("Via", "1.0 penstock") in via
    unix = dict(worker_sees(b"", address=""))
    assert unix["X-Forwarded-For"] == "unknown"
    link = dict(worker_sees(b"", address="fe80::1%eth0"))
    assert link["X-Forwarded-For"] == "fe80::1"
    assert dict(worker_sees(b"", port=443))["X-Forwarded-Port"] == "443"


def test_via_is_continued_and_can_be_left_alone() -> None:
    said = b"Via: 1.0 fred\r\nvia: 1.1 p.example (Apache/1.1)\r\n"
    found = dict(worker_sees(said))
    assert found["Via"] == "1.0 fred, 1.1 p.example (Apache/1.1), 1.1 penstock"
    left = [pair for pair in worker_sees(said, via="") if pair[0].lower() == "via"]
    assert left == [("Via", "1.0 fred"), ("via", "1.1 p.example (Apache/1.1)")]


@pytest.mark.parametrize(
    ("address", "node"),
    [("192.0.2.9", "192.0.2.9"), ("2001:db8::1", '"[2001:db8::1]"'), ("", "unknown"),
     ("fe80::1%eth0", '"[fe80::1]"')],
)  # fmt: skip
def test_forwarded_says_the_same_in_its_own_words(address: str, node: str) -> None:
    found = worker_sees(b"", address=address, forwarded=True, x_forwarded=False, via="")
    assert found == [("Host", "shop.example"), ("Forwarded", f"for={node};proto=http")]


def test_forwarded_of_a_trusted_proxy_is_continued() -> None:
    said = b'Forwarded: for="[2001:db8:1::5]";proto=https;host=www.example, for=10.0.0.3\r\n'
    found = worker_sees(
        said, trusted=True, address="10.0.0.4", forwarded=True, trust="forwarded", via=""
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


def test_a_proxy_that_speaks_one_language_passes_on_the_other_from_strangers() -> None:
    said = b"Forwarded: for=6.6.6.6;proto=https\r\nX-Forwarded-For: 203.0.113.1\r\n"
    found = worker_sees(said, trusted=True, address="10.0.0.1")
    assert "6.6.6.6" not in str(found)
    assert ("X-Forwarded-For", "203.0.113.1, 10.0.0.1") in found
    said = b"Forwarded: for=203.0.113.1\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: evil\r\n"
    found = worker_sees(said, trusted=True, address="10.0.0.1", trust="forwarded")
    assert "6.6.6.6" not in str(found)
    assert "evil" not in str(found)
    assert ("X-Forwarded-For", "203.0.113.1, 10.0.0.1") in found


@pytest.mark.parametrize(
    ("said", "port"),
    [(b"", "8000"), (b"X-Forwarded-Proto: https\r\n", "443"),
     (b"X-Forwarded-Proto: https\r\nX-Forwarded-Port: 8443\r\n", "8443")],
)  # fmt: skip
def test_a_port_belongs_to_what_the_client_speaks(said: bytes, port: str) -> None:
    assert dict(worker_sees(said, trusted=True))["X-Forwarded-Port"] == port


EVIL = "evil"
NAMES = (
    "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port",
    "X-Forwarded-Server", "X-Forwarded", "Forwarded", "X-Real-IP", "X-Client-IP", "Client-Cert",
    "Client-Cert-Chain", "True-Client-IP", "CF-Connecting-IP", "X-Original-Forwarded-For",
    "X-Original-Host", "X-Rewrite-URL", "X-SSL-Client-DN", "Proxy-End-Https", "X-Request-ID",
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
def test_nothing_that_a_stranger_claims_reaches_a_worker(
    fields: list[tuple[str, str]], nominated: list[str], x_forwarded: bool, forwarded: bool
) -> None:
    said = "".join(f"{name}: {value}\r\n" for name, value in fields)
    # What Connection names is dropped; what we say ourselves must not be.
    said += f"Connection: {', '.join(nominated)}\r\n" if nominated else ""
    terms: dict[str, Any] = {"x_forwarded": x_forwarded, "forwarded": forwarded}
    assert worker_sees(said.encode(), **terms) == worker_sees(b"", **terms)
    trailers = request_trailers(said.encode(), frozenset())
    assert trailers == b""


@given(
    st.lists(st.sampled_from(("66.6.6.6", "10.6.6.6", "2001:db8:1::6", EVIL, "", "::1", "66")),
             max_size=6),
    st.lists(st.sampled_from(("10.0.0.1", "10.0.0.2", "2001:db8:1::7")), max_size=4),
)  # fmt: skip
def test_a_client_behind_trusted_proxies_cannot_lengthen_its_way(
    made_up: list[str], proxies: list[str]
) -> None:
    """Each proxy appends whom it was connected to by; the first one was by the client."""
    way = ["203.0.113.1", *proxies]
    said = ", ".join([*made_up, *way[:-1]]) if proxies else None
    fields = b"" if said is None else f"X-Forwarded-For: {said}\r\n".encode()
    found = dict(worker_sees(fields, trusted=bool(proxies), address=way[-1]))
    assert found["X-Forwarded-For"] == ", ".join(way)


@given(st.binary(max_size=60).filter(lambda value: not set(value) & set(b"\0\r\n")))
def test_whatever_a_trusted_proxy_says_makes_no_other_line(value: bytes) -> None:
    names = (b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"X-Forwarded-Port",
             b"Forwarded")  # fmt: skip
    fields = b"".join(name + b": " + value + b"\r\n" for name in names)
    for language in ("x-forwarded", "forwarded"):
        try:
            found = worker_sees(fields, trusted=True, forwarded=True, trust=language)
        except RejectedError:
            return
        assert [name for name, _ in found if name in dict(OURS)].count("X-Forwarded-For") == 1
        assert {name for name, _ in found} <= {*dict(OURS), "Forwarded"}
        for name, text in found:
            assert text.isprintable(), name
