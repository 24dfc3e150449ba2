"""Ranges of indices: what is left out, and what lies within."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence


def gaps(present: Iterable[range], wanted: range, size: int) -> list[range]:
    """What ranges leave out of the wanted one, cut at multiples of `size`."""
    found, start = list[range](), wanted.start
    for one in [*sorted(present, key=lambda indices: indices.start), range(wanted.stop, wanted.stop)]:
        while start < min(one.start, wanted.stop):
            end = min(start - start % size + size, one.start, wanted.stop)
            found.append(range(start, end))
            start = end
        start = max(start, one.stop)
    return found


def within(parts: Sequence[range], wanted: range) -> Iterator[range]:
    """The pieces of ranges, which are in order and do not overlap, that lie in the wanted one."""
    for part in itertools.islice(parts, bisect_right(parts, wanted.start, key=lambda one: one.stop), None):
        if part.start >= wanted.stop:
            return
        yield range(max(part.start, wanted.start), min(part.stop, wanted.stop))
