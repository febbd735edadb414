"""Whether there is memory for one more stream: asked before anything is allocated."""

import threading
from collections.abc import Callable

from arl2.serving.live.wire import NoRoomError

_SHARE = 0.85  # of what is free at the beginning: the rest is for passes, pictures and libraries


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
        self._held: dict[object, int] = {}

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
            return sum(self._held.values())

    def enter(self, name: object, size: int, *, smaller: Callable[[int], str | None] | None = None) -> None:
        """Give a stream room.

        Args:
            name: of the stream.
            size: bytes.
            smaller: what of a stream would fit into so many bytes, in words.

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
            free = None if self._limit is None else self._limit - sum(others.values())
            if free is not None and size > free:
                raise NoRoomError(self._refusal(size, max(0, free), len(others), smaller), self._retry_after)
            self._held[name] = size

    def leave(self, name: object) -> None:
        """Its memory is free again."""
        with self._guard:
            self._held.pop(name, None)

    def _refusal(self, size: int, free: int, others: int, smaller: Callable[[int], str | None] | None) -> str:
        assert self._limit is not None
        said = f"A stream takes about {_said(size)}, and {_said(free)} of the {_said(self._limit)} for streams are free"
        if size > self._limit:
            fits = None if smaller is None else smaller(self._limit)
            return f"{said}; {'no stream of this size fits' if fits is None else f'this would fit: {fits}'}."
        fits = None if smaller is None else smaller(free)
        advice = f"; now this would fit: {fits}" if fits is not None else ""
        return f"{said}: {others} others run. Wait until one ends or falls asleep, or close one{advice}."


def _said(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
