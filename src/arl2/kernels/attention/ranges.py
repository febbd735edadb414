"""Which keys a stretch of queries may see, as integer ranges: a mask that is never ``L x L``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class QueryRange:
    """Queries ``[start, stop)`` see the keys of every ``[start, stop)`` in ``keys`` (disjoint, ascending)."""

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]


Ranges = tuple[QueryRange, ...]


def merge(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Sort, drop empty ranges, and join those that touch or overlap."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(r for r in ranges if r[0] < r[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return tuple(joined)


def is_block_diagonal(ranges: Ranges, tokens: int) -> bool:
    """Every block sees itself alone and all blocks are of one size: then blocks are a batch, and no mask is needed."""
    size = ranges[0].stop - ranges[0].start
    return tokens == size * len(ranges) and all(
        part.keys == ((part.start, part.stop),) and part.stop - part.start == size for part in ranges
    )
