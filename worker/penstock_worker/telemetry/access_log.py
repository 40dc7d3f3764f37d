"""The access log: one line for each exchange or relayed connection, in JSON or combined format.

Owns the format of a line. No client can forge one: its fields are made by `log_field`. Must not
know where lines are written (`log_writer`), nor what time it is.

A line is made at once, and costs a twentieth of a request. Lines that were made later and many
together stopped the event loop for as long as it took: 40 ms for a quarter of a busy second. What
repeats is kept: a second's time, the client's address, a method, a worker's name, a number of
microseconds. No format specification is on the way (`:.6f` alone costs a tenth of a line): digits
come from a table.

Lines go to the thread that writes when there is a piece of PIECE_LINES, or when the owner calls
`flush`. Lines that cannot be written in time are dropped and counted there.
"""

from json.encoder import encode_basestring_ascii as quoted
from time import gmtime
from typing import Final, Literal

from penstock_worker.telemetry.log_field import (
    MAX_FIELD,
    combined_text,
    combined_word,
    header_field,
    json_text,
)
from penstock_worker.telemetry.log_writer import LogWriter

PIECE_LINES: Final = 256
"""To join them takes a twentieth of a millisecond, and to wake the thread less than one line."""

Format = Literal["json", "combined"]

_MAX_KEPT: Final = 1024
"""Texts that are kept for the next line. Strangers must not be able to make them grow."""
_MAX_KEPT_SIZE: Final = 256
"""Of one of them that a client chooses."""
_MAX_KEPT_MICRO: Final = 8192
"""Microseconds; the text of a longer time is not kept. All of them are 800 KB."""
_DIGITS: Final = tuple(f"{number:03}" for number in range(1000))
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


class AccessLog:
    """The log of one service. `add` is for the data path, everything else for its owner.

    Make one by `open_log`. The owner calls `flush`: a proxy four times a second (its tick), a
    worker about every 100 ms. So a process that is killed loses no more than that.
    """

    def __init__(self, log_writer: LogWriter, max_field: int = MAX_FIELD) -> None:
        """`max_field`: characters of one field."""
        self._log_writer = log_writer
        self._max_field = max_field
        self._lines: list[str] = []
        self._second = -1
        self._time = ""
        """The text of that second. It costs more than the rest of a line."""

    def add(
        self, time_s: float, client: str, method: str | bytes, target: str | bytes, version: str,
        status: int, sent: int, received: int, worker: str, connect_s: float | None,
        first_byte_s: float | None, total_s: float, retries: int, request_id: str,
        termination: str, head: bytes, tls: str, /,
    ) -> None:  # fmt: skip
        """Make a line. Arguments by position, because a record would have to be made and read
        again for each line. A `str` is one character a byte (latin-1) wherever it came from a
        client.

        `time_s`: wall clock, seconds since the epoch. `client`: its address, perhaps as a trusted
        proxy reported it. `method`: empty for a relayed connection. `target`: as received.
        `version`: "HTTP/1.1". `status`: 0 without a response. `sent`, `received`: bytes to and
        from the client. `worker`: "web/0"; empty: none was asked. `connect_s`: seconds to the
        worker's connection; None: not reached, or reused. `first_byte_s`: to its first byte.
        `total_s`: to the end. `termination`: "ok" or `Fault.kind`. `head`: header block, for the
        combined format; else empty. `tls`: see `tls_fields`; empty: a connection without TLS.
        """
        raise NotImplementedError

    @property
    def dropped(self) -> int:
        """Lines that could not be written."""
        return self._log_writer.dropped

    def flush(self) -> None:
        """Have all lines so far written."""
        lines = self._lines
        if lines:
            self._lines = []
            self._log_writer.write("".join(lines).encode("ascii"))

    def reopen(self) -> None:
        """Continue in a new file of the same name; earlier entries go to the old one."""
        self.flush()
        self._log_writer.reopen()

    def close(self, timeout_s: float = 2.0) -> None:
        """Flush, and wait until all is written, for `timeout_s` at the most."""
        self.flush()
        self._log_writer.close(timeout_s)


class JsonLog(AccessLog):
    """Lines of JSON. Times in seconds; an unknown value is null."""

    def __init__(self, service: str, log_writer: LogWriter, max_field: int = MAX_FIELD) -> None:
        super().__init__(log_writer, max_field)
        self._service = f'Z","service":{quoted(service)},"client":'
        self._clients: dict[str | bytes, str] = {}
        """By address, the piece of a line from the time to the method."""
        self._targets: dict[str | bytes, str] = {}
        self._words: dict[str | bytes, str] = {}
        """By method, version and termination: what is written for it."""
        self._workers: dict[str | bytes, str] = {"": "null"}
        self._times: dict[int, str] = {}
        """By microseconds. Most requests are quick, and the same few thousand come again."""

    def add(
        self, time_s: float, client: str, method: str | bytes, target: str | bytes, version: str,
        status: int, sent: int, received: int, worker: str, connect_s: float | None,
        first_byte_s: float | None, total_s: float, retries: int, request_id: str,
        termination: str, head: bytes, tls: str, /,
    ) -> None:  # fmt: skip
        milli = int(time_s * 1000.0 + 0.5)
        second = milli // 1000
        if second != self._second:
            self._start_second(second)
        digits, words, lines = _DIGITS, self._words, self._lines
        times = self._times
        connect = first_byte = "null"
        if connect_s is not None:
            micro = int(connect_s * 1000000.0 + 0.5)
            connect = times.get(micro) or self._seconds(micro)
        if first_byte_s is not None:
            micro = int(first_byte_s * 1000000.0 + 0.5)
            first_byte = times.get(micro) or self._seconds(micro)
        micro = int(total_s * 1000000.0 + 0.5)
        # Our own ids are of this kind. A client's may be of any kind, and is looked at.
        if request_id.isalnum() and request_id.isascii() and len(request_id) <= self._max_field:
            request_id = f'"{request_id}"'
        else:
            request_id = json_text(request_id, self._max_field)
        lines.append(
            f"{self._time}{digits[milli % 1000]}{self._clients.get(client) or self._client(client)}"
            f"{words.get(method) or self._word(method)}"
            f',"target":{self._targets.get(target) or self._target(target)}'
            f',"version":{words.get(version) or self._word(version)},"status":{status}'
            f',"bytes_sent":{sent},"bytes_received":{received}'
            f',"worker":{self._workers.get(worker) or self._worker(worker)}'
            f',"duration":{{"connect":{connect},"first_byte":{first_byte}'
            f',"total":{times.get(micro) or self._seconds(micro)}'
            f'}},"retries":{retries},"request_id":{request_id}'
            f',"termination":{words.get(termination) or self._word(termination)}{tls}}}\n'
        )
        if len(lines) >= PIECE_LINES:
            self.flush()

    def _start_second(self, second: int) -> None:
        self._second = second
        at = gmtime(second)
        self._time = (
            f'{{"time":"{at.tm_year:04}-{at.tm_mon:02}-{at.tm_mday:02}'
            f"T{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02}."
        )

    def _seconds(self, micro: int) -> str:
        text = f"{micro // 1000000}.{_DIGITS[micro // 1000 % 1000]}{_DIGITS[micro % 1000]}"
        if micro < _MAX_KEPT_MICRO:
            self._times[micro] = text
        return text

    def _client(self, address: str) -> str:
        text = f'{self._service}{json_text(address, self._max_field)},"method":'
        return _keep(self._clients, address, text)

    def _target(self, target: str | bytes) -> str:
        return _keep(self._targets, target, json_text(target, self._max_field))

    def _word(self, word: str | bytes) -> str:
        return _keep(self._words, word, json_text(word, self._max_field))

    def _worker(self, name: str) -> str:
        return _keep(self._workers, name, json_text(name, self._max_field))


class CombinedLog(AccessLog):
    """Lines as Apache and nginx write them by default.

    No field is added, because many log readers fail on additional ones. The time is UTC, in
    which no hour is repeated in autumn.
    """

    def __init__(self, log_writer: LogWriter, max_field: int = MAX_FIELD) -> None:
        super().__init__(log_writer, max_field)
        self._clients: dict[str | bytes, str] = {}
        """By address, as it is written."""
        self._texts: dict[str | bytes, str] = {}
        """By method, version and value of a header's field: what is written for it."""

    def add(
        self, time_s: float, client: str, method: str | bytes, target: str | bytes, version: str,
        status: int, sent: int, received: int, worker: str, connect_s: float | None,
        first_byte_s: float | None, total_s: float, retries: int, request_id: str,
        termination: str, head: bytes, tls: str, /,
    ) -> None:  # fmt: skip
        second = int(time_s)
        if second != self._second:
            self._start_second(second)
        texts, lines = self._texts, self._lines
        lower = head.lower()
        referer = header_field(head, lower, b"referer:")
        agent = header_field(head, lower, b"user-agent:")
        request = "-"
        if method:
            request = (
                f"{texts.get(method) or self._text(method)}"
                f" {combined_text(target, self._max_field)}"
                f" {texts.get(version) or self._text(version)}"
            )
        lines.append(
            f'{self._clients.get(client) or self._client(client)}{self._time}"{request}"'
            f" {_DIGITS[status] if status < 1000 else status} {sent}"
            f' "{texts.get(referer) or self._text(referer)}"'
            f' "{texts.get(agent) or self._text(agent)}"\n'
        )
        if len(lines) >= PIECE_LINES:
            self.flush()

    def _start_second(self, second: int) -> None:
        self._second = second
        at = gmtime(second)
        self._time = (
            f" - - [{at.tm_mday:02}/{_MONTHS[at.tm_mon - 1]}/{at.tm_year:04}"
            f":{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} +0000] "
        )

    def _client(self, address: str) -> str:
        return _keep(self._clients, address, combined_word(address, self._max_field))

    def _text(self, value: str | bytes) -> str:
        text = combined_text(value, self._max_field)
        if not text:
            text = "-" if isinstance(value, bytes) else ""
        return _keep(self._texts, value, text)


def _keep(kept: dict[str | bytes, str], value: str | bytes, text: str) -> str:
    """Keep what is written for a value, unless it is longer than most, and return it."""
    if len(value) <= _MAX_KEPT_SIZE:
        if len(kept) >= _MAX_KEPT:
            kept.clear()
        kept[value] = text
    return text


def tls_fields(
    version: str, cipher: str, subject: str, *, resumed: bool, max_field: int = MAX_FIELD
) -> str:
    """The fields of TLS in a JSON line, made once for a connection.

    `subject`: of the client's certificate, if it sent one that was verified; else empty.
    """
    return (
        f',"tls":{{"version":{quoted(version)},"cipher":{quoted(cipher)}'
        f',"resumed":{"true" if resumed else "false"}'
        f',"subject":{json_text(subject.encode(), max_field) if subject else "null"}}}'
    )


def make_log(
    service: str, log_writer: LogWriter, form: Format, max_field: int = MAX_FIELD
) -> AccessLog:
    """A log of that format, whose lines go to the writer."""
    if form == "json":
        return JsonLog(service, log_writer, max_field)
    return CombinedLog(log_writer, max_field)


def open_log(
    service: str, target: str, form: Format, max_field: int = MAX_FIELD
) -> AccessLog | None:
    """Open what the key `access_log` names: "stdout", "off" (returns None) or a path.

    OSError if the file cannot be opened.
    """
    if target == "off":
        return None
    return make_log(service, LogWriter(1 if target == "stdout" else target), form, max_field)
