"""Whether there is memory for one more stream: asked before anything is allocated."""

import threading
from collections.abc import Callable, Iterable

from arl2.serving.live.wire import NoRoomError

_SHARE = 0.85  # of what is free at the beginning: the rest is for libraries, and for what is measured too low


class Admission:
    """Counts streams and their bytes. Any thread may call.

    Args:
        most: streams that run at once.
        limit: bytes for all of them; None: unknown, and only their number counts.
        retry_after: seconds, for those that are refused.
    """

    def __init__(self, *, most: int, limit: int | None, retry_after: float) -> None:
        self._most, self._limit, self._retry_after = most, limit, retry_after
        self._guard = threading.Lock()
        self._held: dict[object, tuple[int, int]] = {}

    @classmethod
    def of_free(cls, free: int | None, *, most: int, limit: int | None, retry_after: float) -> "Admission":
        """With the share of the free bytes that streams may take, unless there is a limit."""
        chosen = limit if limit is not None else None if free is None else int(_SHARE * free)
        return cls(most=most, limit=chosen, retry_after=retry_after)

    @property
    def limit(self) -> int | None:
        """Bytes for all streams; None: unknown."""
        return self._limit

    @property
    def running(self) -> int:
        """Streams that have room."""
        return len(self._held)

    @property
    def used(self) -> int:
        """Bytes that they take."""
        with self._guard:
            sizes, works = _sums(self._held.values())
            return sizes + works

    def enter(
        self, name: object, size: int, work: int = 0, *, smaller: Callable[[int, int], str | None] | None = None
    ) -> None:
        """Give a stream room.

        Args:
            name: of the stream.
            size: bytes that it holds.
            work: bytes that it takes while it is its turn: of all streams the largest counts.
            smaller: what of a stream would fit into so many bytes, in words, where others work in so many.

        Raises:
            NoRoomError: there is none; it says what would fit.
        """
        with self._guard:
            others = {one: held for one, held in self._held.items() if one != name}
            if len(others) >= self._most:
                raise NoRoomError(
                    f"{len(others)} streams run, and this server takes no more; close one, or wait until one that "
                    "nobody watches falls asleep.",
                    self._retry_after,
                )
            sizes, working = _sums(others.values())
            if self._limit is not None and sizes + size + max(work, working) > self._limit:
                left = self._limit - sizes
                fits = None if smaller is None or left <= 0 else smaller(left, working)
                least = None if smaller is None else smaller(self._limit, 0)
                # Where others work in more than this one would, that much is not free.
                free = max(0, left - max(0, working - work))
                raise NoRoomError(self._refusal(size + work, free, len(others), fits, least), self._retry_after)
            self._held[name] = size, work

    def leave(self, name: object) -> None:
        """Its memory is free again."""
        with self._guard:
            self._held.pop(name, None)

    def _refusal(self, size: int, free: int, others: int, fits: str | None, least: str | None) -> str:
        assert self._limit is not None
        said = f"A stream takes about {_said(size)}, and {_said(free)} of the {_said(self._limit)} for streams are free"
        if size > self._limit:
            return f"{said}; {'no stream of this size fits' if least is None else f'this would fit: {least}'}."
        advice = f"; now this would fit: {fits}" if fits is not None else ""
        return f"{said}: {others} others run. Wait until one ends or falls asleep, or close one{advice}."


def _sums(held: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Bytes that all hold, and those in which the largest works."""
    pairs = list(held)
    return sum(size for size, _ in pairs), max((work for _, work in pairs), default=0)


def _said(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
