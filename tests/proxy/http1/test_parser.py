"""What two servers could read in two ways is refused; all else is read in one way only.

Covers `http1/field_lines` and `http1/target_forms`.
"""

import pytest

from penstock_proxy.errors import (
    BAD_REQUEST,
    BAD_RESPONSE,
    EXPECTATION,
    HEAD_TOO_LARGE,
    NOT_IMPLEMENTED,
    VERSION,
    Fault,
    RejectedError,
)
from penstock_proxy.http1 import parser, target_forms
from penstock_proxy.http1.parser import NO_LENGTH, Framing, RequestLine

HOST = b"Host: a\r\n"


def read(head: bytes) -> tuple[RequestLine, Framing, bytes]:
    """A whole request head: its line, its fields, its host."""
    line = parser.parse_request_line(head)
    framing = parser.parse_fields(head[line.end :], BAD_REQUEST)
    return line, framing, parser.check_request(line, framing)


def refusal(head: bytes) -> Fault | None:
    try:
        read(head)
    except RejectedError as rejected:
        return rejected.fault
    return None


def with_fields(fields: bytes, version: bytes = b"1.1") -> bytes:
    return b"POST / HTTP/" + version + b"\r\n" + HOST + fields + b"\r\n"


# -- the request line


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"GET / HTTP/1.1", None),
        (b"GET / HTTP/1.0", None),
        (b"GET /a?b=c&d=%20{}|^`[]\\<> HTTP/1.1", None),
        (b"GET //elsewhere/ HTTP/1.1", None),
        (b"M-SEARCH!#$%&'*+.^_`|~09 / HTTP/1.1", None),
        (b"get / HTTP/1.1", None),
        (b"OPTIONS * HTTP/1.1", None),
        (b"A" * 32 + b" / HTTP/1.1", None),
        (b"A" * 33 + b" / HTTP/1.1", NOT_IMPLEMENTED),
        (b"GET", BAD_REQUEST),
        (b"GET /", BAD_REQUEST),
        (b" GET / HTTP/1.1", BAD_REQUEST),
        (b"GET  / HTTP/1.1", BAD_REQUEST),
        (b"GET\t/ HTTP/1.1", BAD_REQUEST),
        (b"GET /  HTTP/1.1", BAD_REQUEST),
        (b"GET / HTTP/1.1 ", BAD_REQUEST),
        (b"GET / x HTTP/1.1", BAD_REQUEST),
        (b"GET  HTTP/1.1", BAD_REQUEST),
        (b"(GET) / HTTP/1.1", BAD_REQUEST),
        (b"G\x00T / HTTP/1.1", BAD_REQUEST),
        (b"G\xc4T / HTTP/1.1", BAD_REQUEST),
        (b"GET /\xc3\xa4 HTTP/1.1", BAD_REQUEST),
        (b"GET /\x00 HTTP/1.1", BAD_REQUEST),
        (b"GET /\x7f HTTP/1.1", BAD_REQUEST),
        (b"GET /\r HTTP/1.1", BAD_REQUEST),
        (b"GET /#fragment HTTP/1.1", BAD_REQUEST),
        (b'GET /"quoted" HTTP/1.1', None),
        (b"GET a HTTP/1.1", BAD_REQUEST),
        (b"GET ?a HTTP/1.1", BAD_REQUEST),
        (b"GET * HTTP/1.1", BAD_REQUEST),
        (b"OPTIONS ** HTTP/1.1", BAD_REQUEST),
        (b"GET a:80 HTTP/1.1", BAD_REQUEST),
        (b"CONNECT a:80 HTTP/1.1", NOT_IMPLEMENTED),
        (b"GET http:///a HTTP/1.1", BAD_REQUEST),
        (b"GET http://user@a/ HTTP/1.1", BAD_REQUEST),
        (b"GET http://a@b/ HTTP/1.1", BAD_REQUEST),
        (b"GET http://a@b HTTP/1.0", BAD_REQUEST),
        (b"GET http://@a/ HTTP/1.1", BAD_REQUEST),
        (b"GET HTTPS://A@b:c@d:1?e HTTP/1.0", BAD_REQUEST),
        (b"GET http://a\\@b/ HTTP/1.1", BAD_REQUEST),
        (b"GET ftp://a/ HTTP/1.1", BAD_REQUEST),
        (b"GET / HTTP/1.2", None),
        (b"GET / HTTP/2.0", VERSION),
        (b"GET / HTTP/0.9", VERSION),
        (b"GET / HTTP/1.10", BAD_REQUEST),
        (b"GET / HTTP/11", BAD_REQUEST),
        (b"GET / HTTP/1,1", BAD_REQUEST),
        (b"GET / HTTP/+1.1", BAD_REQUEST),
        (b"GET / http/1.1", BAD_REQUEST),
        (b"GET / HTTPS/1.1", BAD_REQUEST),
    ],
)
def test_a_request_line_is_read_by_the_letter(line: bytes, fault: Fault | None) -> None:
    assert refusal(line + b"\r\n" + HOST + b"\r\n") == fault


def test_a_request_line_has_method_target_and_version() -> None:
    head = b"PUT /x?y HTTP/1.0\r\n\r\n"
    assert parser.parse_request_line(head) == RequestLine(b"PUT", b"/x?y", 0, len(head) - 2)


@pytest.mark.parametrize(
    ("line", "minor", "plain"),
    [
        (b"GET / HTTP/1.1", 1, True),
        (b"GET / HTTP/1.2", 1, False),
        (b"GET / HTTP/1.0", 0, False),
        (b"GET http://a/ HTTP/1.1", 1, False),
        (b"OPTIONS * HTTP/1.1", 1, False),
    ],
)
def test_only_origin_form_in_http_1_1_is_forwarded_as_it_is(
    line: bytes, minor: int, *, plain: bool
) -> None:
    found = parser.parse_request_line(line + b"\r\n")
    assert (found.minor, found.is_plain) == (minor, plain)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (b"http://a", (b"a", b"/")),
        (b"HTTPS://a:8/b?c", (b"a:8", b"/b?c")),
        (b"http://a?c=/@", (b"a", b"/?c=/@")),
        (b"http://[::1]:80//x", (b"[::1]:80", b"//x")),
    ],
)
def test_an_absolute_target_falls_into_authority_and_path(
    target: bytes, parts: tuple[bytes, bytes]
) -> None:
    assert target_forms.split_absolute(target) == parts


@pytest.mark.parametrize(
    ("line", "target"),
    [
        (b"GET /a?b", b"/a?b"),
        (b"OPTIONS *", b"*"),
        (b"GET http://a", b"/"),
        (b"GET http://a/b?c", b"/b?c"),
        (b"OPTIONS http://a/", b"/"),
        (b"OPTIONS http://a?b", b"/?b"),
        (b"OPTIONS http://a", b"*"),
        (b"OPTIONS http://a/://a", b"/://a"),
    ],
)
def test_a_worker_is_never_asked_in_absolute_form(line: bytes, target: bytes) -> None:
    read = parser.parse_request_line(line + b" HTTP/1.1\r\n")
    assert target_forms.for_worker(read.method, read.target) == target


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"G", False),
        (b"GET /a HTTP/1.1\r", False),
        (b"GET /a HTT", False),
        (b"GET /a HTTP/2.0\r\n", False),
        (b"GET /a HTTP/1.1\r\nHost: a\r\nX", False),
        (b"A" * 33, False),
        (b"GET /\x00", True),
        (b"GET /a\r", True),
        (b"GET /a HTTP/1.1X", True),
        (b"GET / HTTP/1.1\rX", True),
        (b"SSH-2.0-OpenSSH_9.2\r\n", True),
        (b"EHLO example.org\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: a\r", False),
        (b"\r", False),
        (b"\x16\x03\x01\x02\x00", True),
        (b" GET", True),
        (b"\n", True),
        (b"GET / HTTP/1.1\n", True),
        (b"GET / HTTP/1.1\r\nHost: a\n", True),
        (b"GET / HTTP/1.1\r\n\n", True),
        (b"GET / HTTP/1.1\r\r\n\n", True),
    ],
)
def test_what_can_never_become_a_head_is_seen_early(data: bytes, wrong: bool) -> None:
    assert parser.cannot_be_request(data) is wrong


@pytest.mark.parametrize(
    ("data", "rest"),
    [(b"\r\n", b""), (b"\r\n\r\nG", b"G"), (b"G\r\n", b"G\r\n"), (b"\r\n\r", b"\r")],
)
def test_only_whole_empty_lines_before_a_request_are_skipped(data: bytes, rest: bytes) -> None:
    assert parser.skip_empty_lines(data) == rest


# -- fields


@pytest.mark.parametrize(
    "field",
    [
        b"A: b\r\n", b"A:b\r\n", b"A:\r\n", b"A:\t b \t\r\n", b"A: b\tc\xff\r\n",
        b"!#$%&'*+-.^_`|~09Az: b\r\n", b"A: b\r\nA: c\r\n", b"A: :\r\n",
    ],
)  # fmt: skip
def test_a_field_may_hold(field: bytes) -> None:
    assert refusal(with_fields(field)) is None


@pytest.mark.parametrize(
    "field",
    [
        b"A: b\n", b"A: b\rC: d\r\n", b"A: b\x00\r\n", b"A: \x0b\r\n", b"A: \x7f\r\n",
        b"A: \x1b[0m\r\n", b"A : b\r\n", b"A\t: b\r\n", b" A: b\r\n", b": b\r\n", b"A\r\n",
        b"A b\r\n", b"A(: b\r\n", b"\xc3\xa4: b\r\n", b"A: b\r\n c\r\n", b"A: b\r\n\tc\r\n",
        b"A: b\r\n \r\n", b"A: b\r\n\r\nC: d\r\n", b"A: b\r\r\n", b"A: b",
    ],
)  # fmt: skip
def test_a_field_may_not_hold(field: bytes) -> None:
    assert refusal(with_fields(field)) == BAD_REQUEST


def test_a_block_without_its_empty_line_is_no_block() -> None:
    with pytest.raises(RejectedError) as rejected:
        parser.parse_fields(b"A: b\r\n", BAD_RESPONSE)
    assert rejected.value.fault is BAD_RESPONSE


def test_names_are_lower_case_values_are_bare_lines_are_raw() -> None:
    framing = parser.parse_fields(b"Abc: \t d e \t\r\n\r\n", BAD_REQUEST)
    assert framing.lines == [(b"abc", b"d e", b"Abc: \t d e \t")]
    assert framing == Framing(framing.lines, {}, NO_LENGTH, False, frozenset(), b"")


def test_more_fields_than_allowed_are_too_large() -> None:
    parser.parse_fields(b"A: b\r\n" * 3 + b"\r\n", BAD_REQUEST, 3)
    with pytest.raises(RejectedError) as rejected:
        parser.parse_fields(b"A: b\r\n" * 4 + b"\r\n", BAD_REQUEST, 3)
    assert rejected.value.fault is HEAD_TOO_LARGE


# -- how long a body is


@pytest.mark.parametrize(
    ("fields", "length", "chunked"),
    [
        (b"", NO_LENGTH, False),
        (b"Content-Length: 0\r\n", 0, False),
        (b"content-LENGTH:  12 \r\n", 12, False),
        (b"Content-Length: " + b"9" * 18 + b"\r\n", 10**18 - 1, False),
        (b"Content-Length:\t5\t\r\n", 5, False),
        (b"Content-Length: 010\r\n", 10, False),
        (b"Content-Length: 5, 5\r\n", 5, False),
        (b"Content-Length: 5\r\ncontent-length:\t5\r\n", 5, False),
        (b"Transfer-Encoding:\tchunked\t\r\n", NO_LENGTH, True),
        (b"Transfer-Encoding: chunked\r\n", NO_LENGTH, True),
        (b"transfer-encoding:CHUNKED  \r\n", NO_LENGTH, True),
        # Another name, whatever a program behind a gateway folds it into.
        (b"Content_Length: 5\r\n", NO_LENGTH, False),
        (b"Transfer_Encoding: chunked\r\n", NO_LENGTH, False),
        (b"Xontent-Length: 5\r\n", NO_LENGTH, False),
    ],
)
def test_the_length_of_a_body_follows_from_its_fields(
    fields: bytes, length: int, chunked: bool
) -> None:
    _, framing, _ = read(with_fields(fields))
    assert (framing.length, framing.chunked) == (length, chunked)


@pytest.mark.parametrize(
    "lines",
    [b"Content-Length: 007\r\n", b"Content-Length:\t7\r\n", b"CONTENT-LENGTH: 7 \t\r\n",
     b"content-length: 7, 7\r\n", b"Content-Length: 7\r\nContent-Length: 7\r\n"],
)  # fmt: skip
@pytest.mark.parametrize("fault", [BAD_REQUEST, BAD_RESPONSE])
def test_a_length_that_is_not_read_alike_everywhere_is_written_anew(
    lines: bytes, fault: Fault
) -> None:
    framing = parser.parse_fields(b"A: b\r\n" + lines + b"C: d\r\n\r\n", fault)
    raw = [line for _, _, line in framing.lines]
    assert raw == [b"A: b", b"Content-Length: 7", b"C: d"]


@pytest.mark.parametrize(
    ("block", "fixed"),
    [
        (b"A : b\r\n", b"A: b"),
        (b"A \t: b:c : d\r\n", b"A: b:c : d"),
        (b"A: b\r\n c\r\n\td\r\n", b"A: b c d"),
        (b"A:\r\n b\r\n \r\n", b"A: b "),
        (b"A: b\r\n C : d\r\n", b"A: b C : d"),
    ],
)
def test_a_workers_fields_are_repaired_and_a_clients_are_not(block: bytes, fixed: bytes) -> None:
    (line,) = parser.parse_fields(block + b"\r\n", BAD_RESPONSE).lines
    assert line[2] == fixed
    assert refusal(with_fields(block)) == BAD_REQUEST


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"+5", b"-5", b"-0", b"5 5", b"5,6", b"5,", b",5", b"5;q=1", b"0x5", b"5_0", b"5.0", b"5e1",
        b"five", b"5, 05", b'"5"', b"\xb2", b"9" * 19, b"1" + b"0" * 100,
    ],
)  # fmt: skip
def test_a_length_is_digits_and_nothing_else(value: bytes) -> None:
    assert refusal(with_fields(b"Content-Length: " + value + b"\r\n")) == BAD_REQUEST


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        (b"Content-Length: 5\r\ncontent-length: 6\r\n", BAD_REQUEST),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", BAD_REQUEST),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", BAD_REQUEST),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", BAD_REQUEST),
        (b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", BAD_REQUEST),
        (b" Transfer-Encoding: chunked\r\n", BAD_REQUEST),
        (b"Transfer-Encoding:\x0bchunked\r\n", BAD_REQUEST),
        (b"Transfer-Encoding: chunked\x00\r\n", BAD_REQUEST),
        (b"Transfer-Encoding: chunked;q=1\r\n", BAD_REQUEST),
        (b'Transfer-Encoding: "chunked"\r\n', BAD_REQUEST),
        (b"Transfer-Encoding: chu nked\r\n", BAD_REQUEST),
        (b"Transfer-Encoding: chunked\xa0\r\n", BAD_REQUEST),
        (b"Transfer-Encoding: \r\n", BAD_REQUEST),
        (b"Transfer-Encoding: ,chunked\r\n", BAD_REQUEST),
        (b"Transfer-Encoding: chunked, chunked\r\n", BAD_REQUEST),
        (b"Transfer-Encoding: identity, chunked\r\n", NOT_IMPLEMENTED),
        (b"Transfer-Encoding: gzip , br,\tCHUNKED\r\n", NOT_IMPLEMENTED),
        (b"Transfer-Encoding: chunked, gzip, chunked\r\n", BAD_REQUEST),
        (b"Transfer-Encoding: chunked, identity\r\n", BAD_REQUEST),
        (b"Transfer-Encoding: chunked,\tgzip\r\n", BAD_REQUEST),
        (b"Transfer-Encoding: xchunked\r\n", BAD_REQUEST),
        (b"Transfer-Encoding: identity\r\n", BAD_REQUEST),
    ],
)
def test_framing_that_is_doubtful_is_refused(fields: bytes, fault: Fault) -> None:
    assert refusal(with_fields(fields)) == fault
    with pytest.raises(RejectedError) as rejected:
        parser.parse_fields(fields + b"\r\n", BAD_RESPONSE)
    assert rejected.value.fault is BAD_RESPONSE


def test_chunks_are_not_for_http_1_0() -> None:
    assert refusal(with_fields(b"Transfer-Encoding: chunked\r\n", b"1.0")) == BAD_REQUEST


@pytest.mark.parametrize("name", [b"Content-Length", b"transfer-encoding", b"HOST", b"Expect"])
def test_connection_cannot_remove_fields_that_others_depend_on(name: bytes) -> None:
    assert refusal(with_fields(b"Connection: close, " + name + b"\r\n")) == BAD_REQUEST


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        (b"Connection: close\r\n", {b"close"}),
        (b"Connection:\r\n", set()),
        (b"Connection: , Close ,, x-A\t,\r\n", {b"close", b"x-a"}),
        (b"Connection: a\r\nConnection: b\r\n", {b"a", b"b"}),
    ],
)
def test_connection_is_a_list_of_options(fields: bytes, options: set[bytes]) -> None:
    assert read(with_fields(fields))[1].connection == options


@pytest.mark.parametrize("value", [b"a b", b"close;", b'"close"', b"a,b c", b"\xe4"])
def test_connection_is_a_list_of_tokens(value: bytes) -> None:
    assert refusal(with_fields(b"Connection: " + value + b"\r\n")) == BAD_REQUEST


@pytest.mark.parametrize(
    ("fields", "upgrade"),
    [
        (b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"websocket"),
        (b"Upgrade: a\r\nUpgrade: b\r\nConnection: x, upgrade\r\n", b"a, b"),
        (b"Upgrade: websocket\r\n", b""),
        (b"Connection: Upgrade\r\n", b""),
    ],
)
def test_upgrade_counts_only_if_connection_lists_it(fields: bytes, upgrade: bytes) -> None:
    assert read(with_fields(fields))[1].upgrade == upgrade


@pytest.mark.parametrize("value", [b'"h2c"', b"a b", b"a/b/c", b"/a", b"a/", b"a;q=1", b"\xff"])
def test_an_upgrade_that_is_no_list_of_protocols_is_ignored(value: bytes) -> None:
    fields = b"Connection: upgrade\r\nUpgrade: " + value + b"\r\n"
    assert read(with_fields(fields))[1].upgrade == b""


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"H", False),
        (b"HTTP/1.1 200 OK\r\nA: b\r", False),
        (b"HTTQ", True),
        (b"HTTP/2", True),
        (b"\r", True),
        (b"HTTP/1.1 200 OK\n", True),
    ],
)
def test_what_can_never_become_a_response_is_seen_early(data: bytes, wrong: bool) -> None:
    assert parser.cannot_be_response(data) is wrong


# -- the request as a whole


@pytest.mark.parametrize(
    ("head", "host"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"a"),
        (b"GET / HTTP/1.0\r\n\r\n", b""),
        (b"GET / HTTP/1.1\r\nHost: a.b-c_d:8080\r\n\r\n", b"a.b-c_d:8080"),
        (b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", b"[2001:db8::1]:80"),
        (b"GET / HTTP/1.1\r\nHost: a:\r\n\r\n", b"a:"),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"a"),
        (b"GET http://a/ HTTP/1.1\r\nHost: A\r\n\r\n", b"a"),
        (b"GET http://a/ HTTP/1.1\r\nHost: a:80\r\n\r\n", b"a"),
        (b"GET http://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n", b"a:80"),
        (b"GET https://a/ HTTP/1.1\r\nHost: A:0443\r\n\r\n", b"a"),
        (b"GET HTTPS://[::A]:/ HTTP/1.1\r\nHost: [::a]:443\r\n\r\n", b"[::A]:"),
        (b"GET http://a:1 HTTP/1.0\r\n\r\n", b"a:1"),
    ],
)
def test_a_request_has_exactly_one_host(head: bytes, host: bytes) -> None:
    assert read(head)[2] == host


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n", b"GET http://a/ HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a?b\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a#b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a:123456\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: [a]:80\r\nX: \r\n\xff: \r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \xe4\r\n\r\n", b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n", b"GET / HTTP/1.1\r\nHost: :80\r\n\r\n",
        b"GET https://a/ HTTP/1.1\r\nHost: a:80\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nHost: a:443\r\n\r\n",
        b"GET http://a:8/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://[::80]/ HTTP/1.1\r\nHost: [:\r\n\r\n",
        b"GET http://a|b/ HTTP/1.1\r\nHost: a\r\n\r\n", b"GET http://a\\b/ HTTP/1.0\r\n\r\n",
    ],
)  # fmt: skip
def test_a_doubtful_host_is_refused(head: bytes) -> None:
    assert refusal(head) == BAD_REQUEST


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (b"100-continue", None),
        (b"100-Continue", None),
        (b"", None),
        (b",", None),
        (b"\t100-continue\t, 100-CONTINUE,", None),
        (b"200-ok", EXPECTATION),
        (b"100-continue;q=1", EXPECTATION),
        (b"y 100-continue", EXPECTATION),
        (b"100-continue\r\nExpect: other", EXPECTATION),
    ],
)
def test_only_one_expectation_is_known(value: bytes, fault: Fault | None) -> None:
    assert refusal(with_fields(b"Expect: " + value + b"\r\n")) == fault
    # HTTP/1.0 knows none at all (RFC 9110 §10.1.1).
    assert refusal(with_fields(b"Expect: " + value + b"\r\n", b"1.0")) is None


# -- the status line


@pytest.mark.parametrize(
    ("line", "minor", "status"),
    [
        (b"HTTP/1.1 200 OK", 1, 200),
        (b"HTTP/1.0 404 Not Found", 0, 404),
        (b"HTTP/1.1 200 ", 1, 200),
        (b"HTTP/1.1 200", 1, 200),
        (b"HTTP/1.1 999 \xe4\t", 1, 999),
        (b"HTTP/1.1 100 Continue", 1, 100),
        (b"HTTP/1.2 200 OK", 1, 200),
    ],
)
def test_a_status_line_is_read(line: bytes, minor: int, status: int) -> None:
    assert parser.parse_status_line(line + b"\r\n") == (minor, status, len(line) + 2)


@pytest.mark.parametrize(
    "line",
    [
        b"", b"200 OK", b"HTTP/1.1", b"HTTP/1.1 20 OK", b"HTTP/1.1 099 No", b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 200OK", b"HTTP/1.1  200 OK", b" HTTP/1.1 200 OK", b"HTTP/1.12 200 OK",
        b"HTTP/2.0 200 OK", b"HTTP/1.1 +20 OK", b"HTTP/1.1 200 O\rK", b"HTTP/1.1 200 O\x00K",
        b"HTTP/1.1 200 OK\n", b"ICY 200 OK",
    ],
)  # fmt: skip
def test_what_is_no_status_line_is_the_workers_fault(line: bytes) -> None:
    with pytest.raises(RejectedError) as rejected:
        parser.parse_status_line(line + b"\r\n")
    assert rejected.value.fault is BAD_RESPONSE
