"""A key is refused where it has no effect, and the message names the conditions for it."""

from itertools import product
from typing import Any

import pytest

from penstock_supervisor.config import applicability
from penstock_supervisor.config.applicability import (
    APPLICABILITY,
    MODES,
    PROGRAMS,
    SCHEMES,
    ServiceTraits,
)

KEYS = tuple(applicability.keys())


def entry(key: str) -> str:
    """The entry for the key: its own, or the one for its whole table."""
    return key if key in APPLICABILITY else key.partition(".")[0]


def table(key: str, traits: ServiceTraits, value: object = "given") -> dict[str, Any]:
    """A file's table with that key in it."""
    made: dict[str, Any] = {"scheme": traits.scheme, "mode": traits.mode, traits.program: "x"}
    made |= dict.fromkeys(traits.given, True)
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


def test_every_condition_has_a_reason_and_every_key_acts_somewhere() -> None:
    for key, (conditions, why, _) in APPLICABILITY.items():
        assert conditions, key
        assert why or any(condition == applicability.When() for condition in conditions), key


@pytest.mark.parametrize("key", [key for key in KEYS if key not in (*PROGRAMS, "scheme", "mode")])
def test_a_key_is_refused_exactly_where_it_does_nothing(key: str) -> None:
    conditions = APPLICABILITY[entry(key)].conditions
    for scheme, mode, program in product(SCHEMES, MODES, PROGRAMS):
        for given in ((), ("accept_proxy",), ("tls",), ("sni",)):
            traits = ServiceTraits(scheme, mode, program, given)
            refused = {
                ".".join(map(str, location)): text
                for location, text in applicability.check_table(table(key, traits))
                if location[0] not in given or location[0] == key.partition(".")[0]
            }
            acts = any(
                scheme in condition.schemes
                and mode in condition.modes
                and program in condition.programs
                and {program, key, key.partition(".")[0], *given} & {*condition.with_keys}
                for condition in conditions
            )
            assert set(refused) == (set() if acts else {entry(key)}), (traits, refused)


def test_a_value_that_switches_a_key_off_is_allowed_everywhere() -> None:
    traits = ServiceTraits("shared", "http", "command", ())
    for key, (_, _, off_values) in APPLICABILITY.items():
        for value in off_values:
            assert not list(applicability.check_table(table(key, traits, value))), key


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
            "timeouts.handshake: only with tls or sni: otherwise no TLS is spoken here",
            {"app": "a:b", "timeouts": {"handshake": "1s"}},
        ),
        (
            'retries.budget: only with scheme = "ports": no other asks a worker twice',
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
def test_the_message_names_conditions_under_which_the_key_acts(
    text: str, keys: dict[str, Any]
) -> None:
    ((location, reason),) = applicability.check_table(keys)
    assert f"{'.'.join(map(str, location))}: {reason}" == text


@pytest.mark.parametrize(
    "keys",
    [
        {"app": "a:b", "scheme": "porst", "limits": {"body": 1}},
        {"app": "a:b", "mode": ["tcp"], "limits": {"body": 1}},
        {"limits": {"body": 1}, "scheme": "shared"},
        {"app": "a:b", "scheme": "shared", "limits": "none"},
    ],
)
def test_a_table_with_other_errors_is_not_judged(keys: dict[str, Any]) -> None:
    assert list(applicability.check_table(keys)) == []
