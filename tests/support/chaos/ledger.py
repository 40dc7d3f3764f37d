"""The account of a storm: the requests, their outcomes, and the faults that were injected.

Every request that is sent ends as exactly one of *answered* (whole, and with its own id),
*cut* (its client could see that it got no whole answer), *left* (its own client disconnected
first) or *lost* (neither, within the time limit of the test). Wrong answers are kept as text.
One ledger is shared by the whole session and printed at its end.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(slots=True)
class Ledger:
    """Numbers of one storm, or of all of them."""

    sent: int = 0
    answered: int = 0
    refused: int = 0
    """Of those that were answered: with a status that the proxy made up, such as 502."""
    cut: int = 0
    left: int = 0
    lost: int = 0
    wrong: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Ledger") -> None:
        self.sent += other.sent
        self.answered += other.answered
        self.refused += other.refused
        self.cut += other.cut
        self.left += other.left
        self.lost += other.lost
        self.wrong += other.wrong
        self.faults += other.faults

    def plain(self) -> dict[str, Any]:
        """As values that go from one process to another."""
        return {**asdict(self), "faults": dict(self.faults)}

    @classmethod
    def from_plain(cls, values: Any) -> Self:
        return cls(**{**values, "faults": Counter(values["faults"])})

    @property
    def adds_up(self) -> bool:
        return self.sent == self.answered + self.cut + self.left + self.lost

    def __str__(self) -> str:
        return (
            f"{self.sent:,} requests, {self.answered:,} answered ({self.refused:,} of them with"
            f" an error of the proxy's), {self.cut:,} visibly cut, {self.left:,} left by their"
            f" clients, {self.lost:,} lost, {len(self.wrong):,} wrong"
        )

    def most_common_faults(self) -> str:
        """The faults, most first."""
        return ", ".join(f"{name} {count:,}" for name, count in self.faults.most_common())
