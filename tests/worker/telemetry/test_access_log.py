"""Every entry of the access log becomes exactly one line, complete and printable.

Covers `telemetry/log_field`.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_worker.telemetry.access_log import (
    PIECE_LINES,
    Format,
    make_log,
    open_log,
    tls_fields,
)
from penstock_worker.telemetry.log_field import CUT, MAX_FIELD
from penstock_worker.telemetry.log_writer import LogWriter

NOON = 1795262400.0
"""2026-11-21T12:00:00Z."""
HEAD = b"Host: a\r\nUser-Agent: curl/8\r\nreferer:  http://b/ \r\n\r\n"

COMBINED = re.compile(
    r'(\S+) (\S+) (\S+) \[([^\]]+)\] "([^"]*)" (\d{3}) (\d+) "([^"]*)" "([^"]*)"\n'
)


def entry(
    *,
    time_s: float = NOON,
    client: str = "127.0.0.1",
    method: str | bytes = "GET",
    target: str | bytes = "/",
    version: str = "HTTP/1.1",
    status: int = 200,
    worker: str = "web/0",
    connect_s: float | None = 0.0004,
    first_byte_s: float | None = 0.002,
    request_id: str = "7f",
    ended: str = "ok",
    head: bytes = b"",
    tls: str = "",
) -> tuple[Any, ...]:
    return (
        time_s, client, method, target, version, status, 120, 34, worker,
        connect_s, first_byte_s, 0.0025, 1, request_id, ended, head, tls,
    )  # fmt: skip


def written(form: Format, *entries: tuple[Any, ...]) -> str:
    with tempfile.TemporaryFile() as file:
        log = make_log("web", LogWriter(file.fileno()), form)
        for one in entries:
            log.add(*one)
        log.close()
        file.seek(0)
        return file.read().decode("ascii")


def as_json(one: tuple[Any, ...]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(written("json", one))
    return value


@pytest.mark.parametrize("subject", ["", 'commonName=a"\n', "commonName=" + "\u00e9" * 5000])
def test_a_tls_request_is_logged_with_version_cipher_and_subject(subject: str) -> None:
    assert "tls" not in as_json(entry())
    tls = as_json(entry(tls=tls_fields("TLSv1.3", "TLS_AES_128", subject, resumed=True)))["tls"]
    assert (tls["version"], tls["cipher"], tls["resumed"]) == (
        "TLSv1.3", "TLS_AES_128", True
    )  # fmt: skip
    if len(subject) > MAX_FIELD:
        assert MAX_FIELD // 2 < len(tls["subject"]) <= MAX_FIELD
        assert tls["subject"].endswith(CUT)
    else:
        assert tls["subject"] == (subject or None)


def as_combined(one: tuple[Any, ...]) -> tuple[str, ...]:
    match = COMBINED.fullmatch(written("combined", one))
    assert match is not None
    return match.groups()


def test_a_json_line_has_every_field() -> None:
    assert as_json(entry()) == {
        "time": "2026-11-21T12:00:00.000Z",
        "service": "web",
        "client": "127.0.0.1",
        "method": "GET",
        "target": "/",
        "version": "HTTP/1.1",
        "status": 200,
        "bytes_sent": 120,
        "bytes_received": 34,
        "worker": "web/0",
        "duration": {"connect": 0.0004, "first_byte": 0.002, "total": 0.0025},
        "retries": 1,
        "request_id": "7f",
        "termination": "ok",
    }


def test_a_missing_value_is_null() -> None:
    line = as_json(entry(worker="", connect_s=None, first_byte_s=None))
    assert line["worker"] is None
    assert line["duration"] == {"connect": None, "first_byte": None, "total": 0.0025}


@pytest.mark.parametrize(
    ("after_noon_s", "text"),
    [
        (0.0004, "12:00:00.000"),
        (0.123, "12:00:00.123"),
        (0.9996, "12:00:01.000"),
        (61, "12:01:01.000"),
    ],
)
def test_a_time_is_rounded_to_the_nearest_millisecond(after_noon_s: float, text: str) -> None:
    assert as_json(entry(time_s=NOON + after_noon_s))["time"] == f"2026-11-21T{text}Z"


def test_each_line_has_its_own_time() -> None:
    lines = written("json", *(entry(time_s=NOON + second) for second in (0, 0, 1, 0)))
    times = [json.loads(line)["time"][-7:-1] for line in lines.splitlines()]
    assert times == ["00.000", "00.000", "01.000", "00.000"]
    lines = written("combined", *(entry(time_s=NOON + second) for second in (0, 0, 1, 0)))
    assert re.findall(r":(\d\d) ", lines) == ["00", "00", "01", "00"]


def test_a_combined_line_has_the_standard_format() -> None:
    assert written("combined", entry(head=HEAD)) == (
        '127.0.0.1 - - [21/Nov/2026:12:00:00 +0000] "GET / HTTP/1.1" 200 120 "http://b/" "curl/8"\n'
    )


def test_a_combined_line_without_request_status_and_fields_keeps_its_shape() -> None:
    assert written("combined", entry(client="", method="", status=0)) == (
        '- - - [21/Nov/2026:12:00:00 +0000] "-" 000 120 "-" "-"\n'
    )


@pytest.mark.parametrize(
    ("head", "agent"),
    [
        (b"User-Agent: a\r\n", "a"),
        (b"USER-AGENT:a", "a"),
        (b"Host: x\r\nuser-agent: \t a \r\n\r\n", "a"),
        (b"User-Agent:\r\n", "-"),
        (b"X-User-Agent: a\r\n", "-"),
        (b"Host: user-agent: a\r\n", "-"),
        (b'User-Agent: a"b\\c\r\n', r"a\x22b\x5Cc"),
        (b"User-Agent: one\r\nUser-Agent: two\r\n", "one"),
    ],
)
def test_a_field_is_found_by_its_whole_name(head: bytes, agent: str) -> None:
    assert as_combined(entry(head=head))[8] == agent


def test_a_relayed_connection_is_logged_in_json_with_empty_http_fields() -> None:
    line = as_json(entry(method="", target="", version="", status=0, ended="client_gone"))
    assert (line["method"], line["target"], line["status"]) == ("", "", 0)
    assert line["termination"] == "client_gone"


def test_bytes_and_text_give_the_same_line() -> None:
    for form in ("json", "combined"):
        assert written(form, entry(method=b"GET", target=b"/\xc3\xa9")) == written(
            form, entry(method="GET", target="/\xc3\xa9")
        )


@pytest.mark.parametrize(
    ("target", "json_text", "combined_text"),
    [
        (b"/\xc3\xa9", "/é", r"/\xC3\xA9"),
        (b"/\xff", r"/\xff", r"/\xFF"),
        (b"/\r\nGET", "/\r\nGET", r"/\x0D\x0AGET"),
        (b"/\x1b[31m\x7f\x00", "/\x1b[31m\x7f\x00", r"/\x1B[31m\x7F\x00"),
        (b'/"\\', '/"\\', r"/\x22\x5C"),
        ("/\u20ac", "/€", r"/\xE2\x82\xAC"),
        ("/\udcff", r"/\xed\xb3\xbf", r"/\xED\xB3\xBF"),
    ],
)
def test_special_characters_are_escaped(
    target: str | bytes, json_text: str, combined_text: str
) -> None:
    assert as_json(entry(target=target))["target"] == json_text
    assert as_combined(entry(target=target))[4] == f"GET {combined_text} HTTP/1.1"


def test_a_clients_address_cannot_bring_blanks_into_a_combined_line() -> None:
    assert as_combined(entry(client='1.2.3.4 - - [x] "'))[0] == r"1.2.3.4\x20-\x20-\x20[x]\x20\x22"


@pytest.mark.parametrize("text", ["x" * 100_000, "é" * 100_000, '"' * 100_000, "\0" * 100_000])
def test_a_long_field_is_cut_and_marked(text: str) -> None:
    target = as_json(entry(target=text))["target"]
    assert target.endswith(CUT)
    assert len(target) <= 4 * MAX_FIELD
    agent = as_combined(entry(head=b"User-Agent: " + text.encode("latin-1") + b"\r\n"))[8]
    assert agent.endswith(CUT)
    assert len(agent) <= 4 * MAX_FIELD


@pytest.mark.parametrize("form", ["json", "combined"])
@given(
    client=st.text(),
    method=st.text() | st.binary(),
    target=st.text() | st.binary(),
    version=st.sampled_from(["HTTP/1.0", "HTTP/1.1", ""]),
    worker=st.sampled_from(["web/0", ""]),
    request_id=st.text(),
    head=st.binary(),
)  # fmt: skip
def test_every_entry_makes_exactly_one_printable_line(
    form: Format, client: str, method: str | bytes, target: str | bytes, version: str,
    worker: str, request_id: str, head: bytes,
) -> None:  # fmt: skip
    text = written(
        form,
        entry(
            client=client, method=method, target=target, version=version,
            worker=worker, request_id=request_id, head=head,
        ),
    )  # fmt: skip
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    if form == "json":
        assert json.loads(text)["status"] == 200
    else:
        assert COMBINED.fullmatch(text)


def test_an_entry_is_written_once_however_often_the_log_is_flushed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = open_log("web", str(path), "json")
    assert log is not None
    log.add(*entry())
    log.flush()
    log.flush()
    log.close()
    assert path.read_text().count("\n") == 1
    assert log.dropped == 0


def test_reopen_writes_earlier_entries_to_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = open_log("web", str(path), "combined")
    assert log is not None
    log.add(*entry(target="/old"))
    path.rename(tmp_path / "log.1")
    log.reopen()
    log.add(*entry(target="/new"))
    log.close()
    assert "/old" in (tmp_path / "log.1").read_text()
    assert "/new" in path.read_text()
    assert "/old" not in path.read_text()


def test_off_is_no_log_and_stdout_is_the_first_descriptor(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert open_log("web", "off", "json") is None
    log = open_log("web", "stdout", "json")
    assert log is not None
    log.add(*entry())
    log.close()
    assert json.loads(capfd.readouterr().out)["service"] == "web"


def test_lines_beyond_the_sinks_bound_are_dropped_and_counted(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        log = make_log("web", LogWriter(file.fileno(), bound=10), "json")
        for _ in range(3):
            log.add(*entry())
        log.close()
    assert log.dropped == 3


def test_lines_are_passed_on_piece_by_piece_and_not_only_by_a_flush() -> None:
    passed: list[bytes] = []

    class Writer(LogWriter):
        def write(self, lines: bytes) -> None:
            passed.append(lines)

    with tempfile.TemporaryFile() as file:
        for form in ("json", "combined"):
            passed.clear()
            log = make_log("web", Writer(file.fileno()), form)
            for _ in range(PIECE_LINES - 1):
                log.add(*entry())
            assert passed == []
            for _ in range(PIECE_LINES + 2):
                log.add(*entry())
            assert [piece.count(b"\n") for piece in passed] == [PIECE_LINES, PIECE_LINES]
            log.close()
            assert passed[2].count(b"\n") == 1


@given(st.floats(min_value=0, max_value=1e6))
def test_durations_have_six_digits_and_are_rounded(seconds: float) -> None:
    line = written("json", entry(connect_s=seconds, first_byte_s=seconds))
    (text,) = re.findall(r'"connect":(\d+\.\d{6}),"first_byte":\1,', line)
    assert abs(float(text) - seconds) < 0.51e-6


@given(st.lists(st.tuples(st.text(max_size=300), st.binary(max_size=300)), max_size=5))
def test_what_is_kept_for_the_next_line_changes_no_line(texts: list[tuple[str, bytes]]) -> None:
    entries = [
        entry(client=text, method=word, worker=text, version=text, head=b"User-Agent: " + word)
        for text, word in texts
    ]
    for form in ("json", "combined"):
        together = written(form, *entries, *entries)
        assert together == "".join(written(form, one) for one in entries) * 2


def test_strangers_cannot_make_what_is_kept_grow() -> None:
    with tempfile.TemporaryFile() as file:
        for form in ("json", "combined"):
            log = make_log("web", LogWriter(file.fileno()), form)
            for number in range(3000):
                fresh: dict[str, Any] = {"client": f"::{number:x}", "method": f"M{number}"}
                fresh["target"] = f"/{number}"
                log.add(*entry(**fresh, head=b"Referer: %d" % number))
                log.add(*entry(client="::1", method="M" * 300, target="/" * 300))
            kept = [getattr(log, name, {}) for name in ("_clients", "_words", "_texts", "_targets")]
            assert all(len(texts) <= 1024 for texts in kept)
            assert not any(len(text) > 256 for texts in kept for text in texts)
            log.close()
