"""Every key has its places, and anywhere else it is refused with what would make it act."""

from itertools import product
from typing import Any

import pytest

from penstock_supervisor.config import applicability
from penstock_supervisor.config.applicability import (
    APPLICABILITY,
    MODES,
    PROGRAMS,
    SCHEMES,
    Setting,
)

KEYS = tuple(applicability.keys())


def entry(key: str) -> str:
    """Where the table says it: by the key, or for its whole table."""
    return key if key in APPLICABILITY else key.partition(".")[0]


def table(key: str, setting: Setting, value: object = "given") -> dict[str, Any]:
    """A file's table with that key in it."""
    made: dict[str, Any] = {"scheme": setting.scheme, "mode": setting.mode, setting.program: "x"}
    made |= dict.fromkeys(setting.given, True)
    name, _, inner = key.partition(".")
    return made | {name: {inner: value} if inner else value}


def test_every_key_has_one_entry_and_every_entry_a_key() -> None:
    assert [key for key in KEYS if entry(key) not in APPLICABILITY] == []
    twice = [
        key
        for key in KEYS
        if "." in key and key in APPLICABILITY and key.partition(".")[0] in APPLICABILITY
    ]
    assert twice == []
    assert set(APPLICABILITY) - {entry(key) for key in KEYS} == set()


def test_every_reason_is_said_and_every_key_acts_somewhere() -> None:
    for key, (places, why, _) in APPLICABILITY.items():
        assert places, key
        assert why or any(place == applicability.Where() for place in places), key


@pytest.mark.parametrize("key", [key for key in KEYS if key not in (*PROGRAMS, "scheme", "mode")])
def test_where_a_key_does_nothing_it_is_told_and_nowhere_else(key: str) -> None:
    found = APPLICABILITY[entry(key)]
    for scheme, mode, program in product(SCHEMES, MODES, PROGRAMS):
        for given in ((), ("accept_proxy",), ("tls",), ("sni",)):
            setting = Setting(scheme, mode, program, given)
            told = {
                ".".join(map(str, where)): text
                for where, text in applicability.of_table(table(key, setting))
                if where[0] not in given or where[0] == key.partition(".")[0]
            }
            acts = any(
                scheme in place.schemes
                and mode in place.modes
                and program in place.programs
                and {program, key, key.partition(".")[0], *given} & {*place.beside}
                for place in found.places
            )
            assert set(told) == (set() if acts else {entry(key)}), (setting, told)


def test_a_value_that_says_no_is_true_anywhere() -> None:
    setting = Setting("shared", "http", "command", ())
    for key, found in APPLICABILITY.items():
        for value in found.off:
            assert not list(applicability.of_table(table(key, setting, value))), key


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (
            'limits.body: only with scheme = "ports": otherwise nothing of ours reads requests',
            {"scheme": "handoff", "app": "a:b", "limits": {"body": "1MiB"}},
        ),
        (
            'limits.target: only with mode = "http": otherwise nothing of ours reads requests',
            {"mode": "tcp", "app": "a:b", "limits": {"target": "1KiB"}},
        ),
        (
            "timeouts.handshake: only with tls or sni: otherwise nobody of us speaks TLS",
            {"app": "a:b", "timeouts": {"handshake": "1s"}},
        ),
        (
            'retries: only with scheme = "ports": no other asks a worker twice',
            {"scheme": "shared", "app": "a:b", "retries": {"budget": "5%"}},
        ),
        (
            (
                'timeouts.head: only with scheme = "ports", or with accept_proxy: '
                "otherwise nothing of ours reads requests"
            ),
            {"scheme": "shared", "app": "a:b", "timeouts": {"head": "5s"}},
        ),
        (
            "timeouts.start: only with app or command: upstreams are run by others",
            {"upstreams": ["h:1"], "timeouts": {"start": "5s"}},
        ),
    ],
)  # fmt: skip
def test_what_is_told_says_what_can(text: str, keys: dict[str, Any]) -> None:
    ((where, said),) = applicability.of_table(keys)
    assert f"{'.'.join(map(str, where))}: {said}" == text


@pytest.mark.parametrize(
    "keys",
    [
        {"app": "a:b", "scheme": "porst", "limits": {"body": 1}},
        {"app": "a:b", "mode": ["tcp"], "limits": {"body": 1}},
        {"limits": {"body": 1}, "scheme": "shared"},
        {"app": "a:b", "scheme": "shared", "limits": "none"},
    ],
)
def test_nothing_is_concluded_from_what_is_wrong_itself(keys: dict[str, Any]) -> None:
    assert list(applicability.of_table(keys)) == []
