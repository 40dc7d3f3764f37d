"""Shows on request where every thread and every task stands, although the loop may be blocked.

Owns one signal, `contract.DUMP_STACKS_SIGNAL`, and what is written when it comes. Must not know who
sends it, nor why.

Two handlers share the signal. That of faulthandler needs no interpreter: it shows the threads at
once, also while a call of C holds the lock of the interpreter. Then comes a handler in Python
for the tasks. The interpreter runs it as soon as the main thread executes Python, or waits in
a call that can be interrupted, such as `time.sleep`. No thread waits for this, so a program that
forks does not become one with threads.

The text is bounded: tasks at the same place are one entry. It is written straight to descriptor 2.
"""

import asyncio
import faulthandler
import os
import signal
from asyncio import AbstractEventLoop, Task
from collections import Counter
from types import CodeType, FrameType
from typing import Any, Final

from penstock_worker import contract

_STDERR: Final = 2
_MAX_STACKS: Final = 50
"""Different ones that are shown."""
_MAX_FRAMES: Final = 20
"""Of one task."""
_MAX_TASKS: Final = 100_000
"""That are looked at."""
_MAX_LINE: Final = 200


class StackDump:
    """`install` it in the main thread, and `reset` it in a forked child."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop

    def install(self) -> None:
        # First the handler that faulthandler calls after its own.
        signal.signal(contract.DUMP_STACKS_SIGNAL, self._dump_tasks)
        faulthandler.register(
            contract.DUMP_STACKS_SIGNAL, file=_STDERR, all_threads=True, chain=True
        )

    def reset(self) -> None:
        """As before. A worker keeps it to its very end, since the signal would kill it."""
        faulthandler.unregister(contract.DUMP_STACKS_SIGNAL)
        signal.signal(contract.DUMP_STACKS_SIGNAL, signal.SIG_DFL)

    def _dump_tasks(self, _: int, __: FrameType | None) -> None:
        try:
            text = tasks_text(self._loop)
        except Exception as error:  # noqa: BLE001 -- in the middle of anything; it must go on
            text = f"The tasks cannot be shown: {type(error).__name__}\n"
        _write(text)


def tasks_text(loop: AbstractEventLoop) -> str:
    """All tasks of the loop by the place where they wait, the most frequent first."""
    names: dict[tuple[str, ...], str] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    tasks = list(asyncio.all_tasks(loop))
    for task in tasks[:_MAX_TASKS]:
        stack = tuple(task_stack(task))
        counts[stack] += 1
        names.setdefault(stack, task.get_name())
    lines = [f"Tasks of the event loop: {len(tasks)}"]
    for stack, count in counts.most_common(_MAX_STACKS):
        more = f" and {count - 1} more" if count > 1 else ""
        lines.append(f"Task {names[stack]}{more} (most recent call first):"[:_MAX_LINE])
        lines += stack
    if len(counts) > _MAX_STACKS:
        rest = sum(counts.values()) - sum(count for _, count in counts.most_common(_MAX_STACKS))
        lines.append(f"… and {rest} tasks at {len(counts) - _MAX_STACKS} other places")
    return "\n".join(lines) + "\n"


def task_stack(task: Task[Any]) -> list[str]:
    """Where a task waits, as faulthandler writes it: the innermost call first."""
    found: list[str] = []
    waiting: Any = task.get_coro()
    while waiting is not None and len(found) < _MAX_FRAMES:
        frame = _attribute(waiting, "frame")
        if isinstance(frame, FrameType):
            found.append(_line(frame.f_code, frame.f_lineno))
        waiting = _attribute(waiting, "await", "yieldfrom")
    return found[::-1] or ["  no frame of Python"]


def _attribute(waiting: Any, *names: str) -> Any:
    """Of a coroutine, a generator or an asynchronous generator."""
    for name in names:
        for prefix in ("cr_", "gi_", "ag_"):
            if (found := getattr(waiting, prefix + name, None)) is not None:
                return found
    return None


def _line(code: CodeType, line: int) -> str:
    return f'  File "{code.co_filename}", line {line} in {code.co_name}'[:_MAX_LINE]


def _write(text: str) -> None:
    data = memoryview(text.encode(errors="backslashreplace"))
    try:
        while data:
            data = data[os.write(_STDERR, data) :]
    except OSError:
        return
