"""What is told of roll-outs: their views, their results, and an event for each step.

The engine of roll-outs puts a view here whenever something of it has changed. The admin pages, the
control API and `Cluster` read it. Owns how many are kept, how long the running one has taken, and
which events follow from the difference of two views. Must not know what a roll-out does.

Events have the name `rollout`. Their message has `rollout` (the number), `phase` (begin, step,
end) and what that phase is about: `action`, `state`, `old_pid`, `new_pid` and `reason` of a step,
`result` and `reason` of the end.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any, Final, NamedTuple

from penstock_supervisor.children.events import Events
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.snapshot import ReloadRefusal, RolloutView, StepView

KEPT: Final = 10
"""Roll-outs that have ended, and are still shown."""


class RolloutRecords:
    def __init__(
        self, events: Events, clock: Callable[[], float], time_of_day: Callable[[], float]
    ) -> None:
        self.config_ok = True
        """The last reload has succeeded: it was not refused, and its roll-out ended well."""
        self.config_applied_at = time_of_day()
        self.refusal: ReloadRefusal | None = None
        """Of the last reload; None: it was not refused."""
        self.results: Counter[str] = Counter()
        """Number of roll-outs that ended so far, by result."""
        self._events = events
        self._clock = clock
        self._time_of_day = time_of_day
        self._views: dict[int, RolloutView] = {}
        self._orders = count(1)
        self._last_order = 0
        """Of the reload that `config_ok` is about."""
        self._begun: dict[int, float] = {}
        """By number of those that run."""
        self._version = 0
        self._condition = Condition()

    def put(self, view: RolloutView) -> None:
        """Something of this roll-out has changed, or it is a new one.

        Its `duration_s` is set here. A roll-out that has ended does not change any more.
        """
        before = self._views.get(view.number)
        if before is not None and before.result:
            return
        begun = self._begun.setdefault(view.number, self._clock())
        view = view._replace(duration_s=self._clock() - begun)
        self._views[view.number] = view
        for news in _news(before, view):
            self._emit(view, news)
        if view.result:
            self.results[view.result] += 1
            del self._begun[view.number]
            self._forget_old()
        self._version += 1
        self._condition.notify()

    def views(self) -> tuple[RolloutView, ...]:
        """Those that run and the last ones that ended, oldest first."""
        now = self._clock()
        return tuple(
            view._replace(duration_s=now - self._begun[number]) if number in self._begun else view
            for number, view in sorted(self._views.items())
        )

    def get(self, number: int) -> RolloutView | None:
        """None: there was none of this number, or it ended long ago."""
        return next((view for view in self.views() if view.number == number), None)

    def next_order(self) -> int:
        """The number of a reload that is asked for now."""
        return next(self._orders)

    def reload_begun(self) -> None:
        """A reload was not refused: what was wrong with the one before is put right."""
        self.refusal = None

    def config_read(self, *, ok: bool, refusal: str = "", order: int | None = None) -> None:
        """A reload has succeeded, or not. `refusal`: why it was refused at once, in one line.

        `order`: that of the reload, which may have ended after a later one, such as one that was
        refused at once; None: it is the last one.
        """
        order = self.next_order() if order is None else order
        if order >= self._last_order:
            self._last_order = order
            self.config_ok = ok
            self.refusal = ReloadRefusal(refusal, self._time_of_day()) if refusal else None
        if ok:
            self.config_applied_at = self._time_of_day()

    async def changed(self) -> None:
        """Wait until the next change of any roll-out."""
        seen = self._version
        await self._condition.wait_until(lambda: self._version != seen)

    def _forget_old(self) -> None:
        ended = sorted(number for number in self._views if number not in self._begun)
        for number in ended[:-KEPT]:
            del self._views[number]

    def _emit(self, view: RolloutView, news: "_News") -> None:
        message = {"rollout": view.number, "phase": news.phase, **news.about}
        text = f"roll-out {view.number}: {news.text}"
        if (step := news.step) is None:
            self._events.emit("rollout", "supervisor", text=text, message=message)
        else:
            self._events.emit(
                "rollout", "worker", step.service, step.slot, step.new_pid or step.old_pid,
                text=text, message=message,
            )  # fmt: skip


_Place = tuple[str, int, int]


class _News(NamedTuple):
    """One event."""

    phase: str
    text: str
    about: dict[str, Any]
    step: StepView | None = None


def _news(before: RolloutView | None, view: RolloutView) -> Iterator[_News]:
    """What has happened between two views of the same roll-out."""
    if before is None:
        yield _News("begin", "begun", {"changes": list(view.changes)})
    known = {} if before is None else {place: step.state for place, step in _placed(before.steps)}
    for place, step in _placed(view.steps):
        if step.state not in ("waiting", known.get(place)):
            about = step._asdict()
            del about["service"], about["slot"]
            yield _News("step", f"{step.action} {step.state}", about, step)
    if view.result:
        yield _News("end", view.result, {"result": view.result, "reason": view.reason})


def _placed(steps: Iterable[StepView]) -> Iterator[tuple[_Place, StepView]]:
    """Each step with what tells it from all others: its slot, and the how manyth one it is there.
    A slot has several if it is rolled back, or if another request joins the roll-out."""
    seen: Counter[tuple[str, int]] = Counter()
    for step in steps:
        slot = step.service, step.slot
        seen[slot] += 1
        yield (*slot, seen[slot]), step
