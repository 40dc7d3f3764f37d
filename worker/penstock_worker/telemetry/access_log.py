"""The access log: one line for each exchange or relayed connection, in JSON or combined format.

Owns the format of a line, and that no client can forge one: every field is cut to a length, and
the output is printable ASCII, whatever came in. Must not know where lines are written
(`log_writer`), nor what time it is.

On the data path `add` only appends to a list, because making a line costs as much as reading a
request head. `flush` makes the lines of all entries since the last flush, and passes them to the
thread that writes. Lines that cannot be written in time are dropped and counted there.
"""

from collections.abc import Callable
from json.encoder import encode_basestring_ascii as quoted
from time import gmtime
from typing import Final, Literal

from penstock_worker.telemetry.log_writer import LogWriter

MAX_FIELD: Final = 1024
"""Characters of one field, by default; a longer one is cut and ends in CUT."""
CUT: Final = "..."

Entry = tuple[
    float,  # wall clock, seconds since the epoch
    str,  # client's address, perhaps as a trusted proxy reported it
    str | bytes,  # method, empty for a relayed connection
    str | bytes,  # target as received
    str,  # version, "HTTP/1.1"
    int,  # status, 0: there was no response
    int,  # bytes sent to the client
    int,  # bytes received from the client
    str,  # worker, "web/0"; empty: no worker was asked
    float | None,  # seconds to the worker's connection; None: not reached, or reused
    float | None,  # seconds to its first byte
    float,  # seconds to the end
    int,  # retries
    str,  # request id
    str,  # termination: "ok" or Fault.kind
    bytes,  # header block, for the combined format; else empty
    str,  # the fields of TLS, see `tls_fields`; empty: a connection without TLS
]
"""A plain tuple: a NamedTuple of this length takes six times as long to make. A `str` is
one character a byte (latin-1) wherever it came from a client."""

Format = Literal["json", "combined"]

_MONTHS: Final = (
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
)
_ESCAPES: Final = {
    code: f"\\x{code:02X}" for code in (*range(0x20), 0x22, 0x5C, *range(0x7F, 0x100))
}
"""As nginx writes them: the only quotes in a line are those around its fields."""


class AccessLog:
    """The log of one service. `add` is for the data path, everything else for its owner.

    Make one by `open_log`. The owner calls `flush`: a proxy four times a second (its tick), a
    worker about every 100 ms.
    """

    __slots__ = ("_entries", "_line", "_log_writer", "add")

    add: Callable[[Entry], None]
    """Store one entry. It is the list's own method, so it costs no Python call."""

    def __init__(
        self, service: str, log_writer: LogWriter, form: Format, max_field: int = MAX_FIELD
    ) -> None:
        """`max_field`: characters of one field."""
        self._log_writer = log_writer
        self._entries: list[Entry] = []
        self._line = _Json(service, max_field).line if form == "json" else _Combined(max_field).line
        self.add = self._entries.append

    @property
    def dropped(self) -> int:
        """Lines that could not be written."""
        return self._log_writer.dropped

    def flush(self) -> None:
        """Make lines of the entries so far, and have them written."""
        entries = self._entries
        if entries:
            lines = "".join(map(self._line, entries))
            entries.clear()
            self._log_writer.write(lines.encode("ascii"))

    def reopen(self) -> None:
        """Continue in a new file of the same name; earlier entries go to the old one."""
        self.flush()
        self._log_writer.reopen()

    def close(self, timeout_s: float = 2.0) -> None:
        """Flush, and wait until all is written, for `timeout_s` at the most."""
        self.flush()
        self._log_writer.close(timeout_s)


def tls_fields(
    version: str, cipher: str, subject: str, *, resumed: bool, max_field: int = MAX_FIELD
) -> str:
    """The fields of TLS in a JSON line, made once for a connection.

    `subject`: of the client's certificate, if it sent one that was verified; else empty.
    """
    return (
        f',"tls":{{"version":{quoted(version)},"cipher":{quoted(cipher)}'
        f',"resumed":{"true" if resumed else "false"}'
        f',"subject":{_json(subject.encode(), max_field) if subject else "null"}}}'
    )


def open_log(
    service: str, target: str, form: Format, max_field: int = MAX_FIELD
) -> AccessLog | None:
    """Open what the key `access_log` names: "stdout", "off" (returns None) or a path.

    OSError if the file cannot be opened.
    """
    if target == "off":
        return None
    return AccessLog(service, LogWriter(1 if target == "stdout" else target), form, max_field)


class _Json:
    """Lines of JSON. Times in seconds; an unknown value is null."""

    def __init__(self, service: str, max_field: int) -> None:
        self._service = quoted(service)
        self._max_field = max_field
        self._second = -1
        self._time = ""

    def line(self, entry: Entry) -> str:
        (
            time_s, client, method, target, version, status, sent, received, worker,
            connect_s, first_byte_s, total_s, retries, request_id, termination, _, tls,
        ) = entry  # fmt: skip
        second, milli = divmod(round(time_s * 1000), 1000)
        if second != self._second:
            # Thousands of lines share a second, and its text costs more than the rest of a line.
            self._second = second
            at = gmtime(second)
            self._time = (
                f"{at.tm_year:04}-{at.tm_mon:02}-{at.tm_mday:02}"
                f"T{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02}"
            )
        limit = self._max_field
        # version, worker and termination do not come from a client, so they are not checked.
        return (
            f'{{"time":"{self._time}.{milli:03}Z"'
            f',"service":{self._service},"client":{_json(client, limit)}'
            f',"method":{_json(method, limit)}'
            f',"target":{_json(target, limit)},"version":{quoted(version)},"status":{status}'
            f',"bytes_sent":{sent},"bytes_received":{received}'
            f',"worker":{quoted(worker) if worker else "null"}'
            f',"duration":{{"connect":{_seconds(connect_s)},"first_byte":{_seconds(first_byte_s)}'
            f',"total":{total_s:.6f}}},"retries":{retries}'
            f',"request_id":{_json(request_id, limit)},"termination":{quoted(termination)}{tls}}}\n'
        )


class _Combined:
    """Lines as Apache and nginx write them by default.

    No field is added, because many log readers fail on additional ones. The time is UTC, in
    which no hour is repeated in autumn.
    """

    def __init__(self, max_field: int) -> None:
        self._max_field = max_field
        self._second = -1
        self._time = ""

    def line(self, entry: Entry) -> str:
        time_s, client, method, target, version, status, sent = entry[:7]
        head = entry[15]
        second = int(time_s)
        if second != self._second:
            self._second = second
            at = gmtime(second)
            self._time = (
                f"{at.tm_mday:02}/{_MONTHS[at.tm_mon - 1]}/{at.tm_year:04}"
                f":{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} +0000"
            )
        lower, cut = head.lower(), self._max_field
        request = "-"
        if method:
            request = f"{_escaped(method, cut)} {_escaped(target, cut)} {_escaped(version, cut)}"
        return (
            f'{_address(client, cut)} - - [{self._time}] "{request}" {status:03} {sent}'
            f' "{_field(head, lower, b"referer:", cut)}"'
            f' "{_field(head, lower, b"user-agent:", cut)}"\n'
        )


def _seconds(value: float | None) -> str:
    return "null" if value is None else f"{value:.6f}"


def _json(value: str | bytes, limit: int) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if text.isascii() and text.isprintable() and len(text) <= limit:
        return quoted(text)
    # Valid UTF-8 is decoded, other bytes become \xNN. There must be no lone surrogate: many
    # JSON parsers would refuse the whole line.
    text = _octets(_cut(text, limit)).decode("utf-8", "backslashreplace")
    # DEL is the one control character that `quoted` leaves as it is.
    return quoted(text).replace("\x7f", "\\u007f")


def _escaped(value: str | bytes, limit: int) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if text.isascii() and text.isprintable() and len(text) <= limit:
        return text if '"' not in text and "\\" not in text else text.translate(_ESCAPES)
    return _octets(_cut(text, limit)).decode("latin-1").translate(_ESCAPES)


def _address(client: str, limit: int) -> str:
    """The one field without quotes around it: blanks are escaped as well."""
    return _escaped(client, limit).replace(" ", "\\x20") or "-"


def _field(head: bytes, lower: bytes, name: bytes, limit: int) -> str:
    """The first field of that name, or "-"."""
    start = 0 if lower.startswith(name) else lower.find(b"\n" + name) + 1
    if not start and not lower.startswith(name):
        return "-"
    end = head.find(b"\n", start)
    value = head[start + len(name) : len(head) if end < 0 else end].strip()
    return _escaped(value, limit) or "-"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - len(CUT)] + CUT


def _octets(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        # Not a client's bytes, or not decoded as latin-1.
        return text.encode("utf-8", "surrogatepass")
