"""Latencies in buckets: from 1 µs to 100 s, with an error below one per cent.

Each power of two is divided into 128 equal parts, as in HdrHistogram. So a bucket is found with
a shift and without a logarithm, and histograms of different processes, rounds and tools can be
added. Latencies below 1 µs are in bucket 0, those above 100 s in the last one. The value of a
bucket is its upper end, so a latency is never shown better than it was. No I/O, no clock.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from math import ceil
from typing import Final

_BITS: Final = 7
_PARTS: Final = 1 << _BITS
_UNITS_PER_S: Final = _PARTS * 1e6
"""So small that even the first microsecond has all its parts."""
_MAX_S: Final = 100.0


def index(seconds: float) -> int:
    """The bucket of a latency. A negative one is in bucket 0."""
    units = int(min(seconds, _MAX_S) * _UNITS_PER_S)
    if units < _PARTS:
        return 0
    shift = units.bit_length() - _BITS - 1
    return (shift << _BITS) + (units >> shift) - _PARTS + 1


def upper(bucket: int) -> float:
    """The upper end of a bucket in seconds. All its latencies are below (in the last: or more)."""
    if bucket <= 0:
        return 1e-6
    shift, part = divmod(bucket - 1, _PARTS)
    return ((part + _PARTS + 1) << shift) / _UNITS_PER_S


def merge(histograms: Iterable[Mapping[int, int]]) -> dict[int, int]:
    merged: Counter[int] = Counter()
    for counts in histograms:
        merged.update(counts)
    return dict(merged)


def percentile(counts: Mapping[int, int], share: float) -> float:
    """The latency in seconds that `share` (0 to 1) of all do not exceed. 0: there is none."""
    remaining = max(1, ceil(share * sum(counts.values())))
    for bucket in sorted(counts):
        remaining -= counts[bucket]
        if remaining <= 0:
            return upper(bucket)
    return 0.0
