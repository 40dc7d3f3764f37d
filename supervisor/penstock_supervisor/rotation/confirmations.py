"""Who has confirmed that a member is well: CONFIRM messages, and what has answered them.

A member that is in the rotation may have failed its last checks: it falls only after several. So
before a worker's time on trial counts as passed, each proxy that decides is asked for one more good
check. A proxy that starts later knows nothing of the question, and is asked again.

Must not know how proxies are told, or which of them decide. No I/O, no clock.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import count

from penstock_supervisor.children.plan import MemberKey


@dataclass(slots=True)
class _Question:
    number: int
    on_answer: tuple[Callable[[], None], ...]
    confirmed_by: set[int] = field(default_factory=set)
    denied_by: dict[int, str] = field(default_factory=dict)
    """What was wrong at its last check there."""


class Confirmations:
    """Proxies by their number. A member has one question at a time: the last one."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._questions: dict[MemberKey, _Question] = {}

    def begin(self, member: MemberKey, on_answer: Callable[[], None]) -> int:
        """Ask about this member anew; returns the number of the question. `on_answer` is called
        after each answer. So is who has asked before: it may wait for the same."""
        number = next(self._numbers)
        earlier = self._questions.get(member)
        waiting = (on_answer,) if earlier is None else (*earlier.on_answer, on_answer)
        self._questions[member] = _Question(number, tuple(dict.fromkeys(waiting)))
        return number

    def answered(self, member: MemberKey, number: object, reason: str = "", *, by: int) -> None:
        """A proxy has found it well, or `reason` says what was wrong. An answer to another question
        changes nothing."""
        question = self._questions.get(member)
        if question is None or question.number != number:
            return
        question.denied_by.pop(by, None)
        if reason:
            question.denied_by[by] = reason
        else:
            question.confirmed_by.add(by)
        for told in question.on_answer:
            told()

    def proxy_started(self, proxy: int) -> Iterator[tuple[MemberKey, int]]:
        """What a proxy said that had this number before is void. Yields the questions to ask."""
        for member, question in self._questions.items():
            question.confirmed_by.discard(proxy)
            question.denied_by.pop(proxy, None)
            yield member, question.number

    def forget(self, member: MemberKey) -> None:
        """Its process is gone, or told to go."""
        self._questions.pop(member, None)

    def is_open(self, member: MemberKey, proxies: Collection[int]) -> bool:
        """Has it been asked about, and have not all of these confirmed it?"""
        return member in self._questions and not self.has_all(member, proxies)

    def why_denied(self, member: MemberKey) -> str:
        """What was wrong at its last check, wherever that was; empty: nothing is known of that."""
        question = self._questions.get(member)
        return "" if question is None else next(iter(question.denied_by.values()), "")

    def has_all(self, member: MemberKey, proxies: Collection[int]) -> bool:
        """All of these have confirmed it, and there is one at least."""
        question = self._questions.get(member)
        return question is not None and bool(proxies) and question.confirmed_by.issuperset(proxies)
