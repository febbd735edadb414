"""Just in time: a block begins when the viewer needs it. The clock is the test's own, and nobody sleeps."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from arl2.errors import ConfigError
from arl2.rollout.blocks import Block
from arl2.serving.keep_up import KeepUp
from arl2.serving.pace import ViewerBuffer
from serving.test_keep_up import PATIENCE, Counting, numbers, until

FRAMES = 4  # of a block of Counting, shown in a second


class Clock:
    """A time that stands still until the test moves it; ``runs`` lets it pass as fast as somebody waits for it."""

    def __init__(self, *, runs: bool = False) -> None:
        self.seconds, self.runs = 100.0, runs
        self.waited_for: list[float | None] = []
        self.alarm: tuple[float, Callable[[], None]] | None = None  # what happens at a time, once
        self._changed: threading.Condition | None = None

    def now(self) -> float:
        return self.seconds

    def wait(self, changed: threading.Condition, seconds: float | None) -> None:
        self._changed = changed
        self.waited_for.append(seconds)
        if self.runs and seconds is not None:
            if self.alarm is not None and self.seconds + seconds >= self.alarm[0]:
                (moment, ring), self.alarm = self.alarm, None
                self.seconds = max(self.seconds, moment)
                ring()
            else:
                self.seconds += seconds
        else:
            assert changed.wait(PATIENCE)

    def advance(self, seconds: float) -> None:
        """Once somebody waits."""
        until(lambda: self._changed is not None)
        assert self._changed is not None
        with self._changed:
            self.seconds += seconds
            self._changed.notify_all()

    def buffer(self) -> ViewerBuffer:
        return ViewerBuffer(FRAMES, now=self.now, wait=self.wait)


def is_idle(clock: Clock, stream: Counting, index: int, seconds: float | None) -> bool:
    """Whether the stream stands before a block, with so many seconds to go."""
    waited = clock.waited_for[-1] if clock.waited_for else -1.0
    return stream.index == stream.decoded == index and waited == (None if seconds is None else pytest.approx(seconds))


def test_a_block_begins_when_no_more_than_one_is_left_to_see() -> None:
    stream, clock = Counting(), Clock()
    with KeepUp(stream, policy="just-in-time", buffer=clock.buffer()) as keep:
        # Of nothing seen yet one block is left, so the second begins with the first picture.
        assert [next(keep).index, next(keep).index] == [0, 1]
        until(lambda: is_idle(clock, stream, 2, 1.0))
        clock.advance(0.75)
        until(lambda: is_idle(clock, stream, 2, 0.25))
        clock.advance(0.25)
        until(lambda: stream.index == 3)
        # It is not taken: a viewer that is slow is not sent more.
        until(lambda: is_idle(clock, stream, 3, None))
        clock.advance(10.0)
        assert next(keep).index == 2
        assert stream.most_ahead == 1


def test_a_command_takes_effect_at_the_next_block_and_waits_for_nothing() -> None:
    stream, clock = Counting(), Clock()
    with KeepUp(stream, policy="just-in-time", buffer=clock.buffer()) as keep:
        assert [next(keep).index, next(keep).index] == [0, 1]
        until(lambda: is_idle(clock, stream, 2, 1.0))
        given: Future[int] = keep.at_block(lambda one: one.index)
        assert given.result(PATIENCE) == 2
        # "wait" has made three blocks more by now: they would be seen first.
        assert stream.index == 2


def test_a_pause_begins_no_block_and_keeps_what_is_left() -> None:
    stream, clock = Counting(), Clock()
    with KeepUp(stream, policy="just-in-time", buffer=clock.buffer()) as keep:
        assert [next(keep).index, next(keep).index] == [0, 1]
        until(lambda: is_idle(clock, stream, 2, 1.0))
        clock.advance(0.5)
        keep.pause()
        assert keep.paused
        until(lambda: is_idle(clock, stream, 2, None))
        clock.advance(100.0)
        assert keep.at_block(lambda one: one.index).result(PATIENCE) == 2  # commands are done meanwhile
        until(lambda: is_idle(clock, stream, 2, None))
        keep.pause(False)
        until(lambda: is_idle(clock, stream, 2, 0.5))
        clock.advance(0.5)
        assert next(keep).index == 2


@pytest.mark.parametrize("policy", ["wait", "just-in-time"])
def test_a_paused_stream_ends_when_it_is_told_to(policy: str) -> None:
    stream = Counting()
    buffer = Clock().buffer() if policy == "just-in-time" else None
    with KeepUp(stream, policy=policy, buffer=buffer) as keep:  # type: ignore[arg-type]
        next(keep)
        keep.pause()
        keep.stop()
        assert [block.index for block in keep] == list(range(1, stream.index))


def test_every_block_comes_in_order_and_none_early() -> None:
    clock = Clock(runs=True)
    begun = clock.seconds
    with KeepUp(Counting(50), policy="just-in-time", buffer=clock.buffer()) as keep:
        assert numbers(keep) == list(range(50))
    # As long as all but one are seen; then it would be time for another.
    assert clock.seconds - begun == pytest.approx(49.0)


class Slow(Counting):
    """Its blocks take a quarter of the time that they are seen."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def latents_next(self) -> Block:
        self._clock.seconds += 0.25
        return super().latents_next()


@pytest.mark.parametrize(("margin", "most"), [(None, 2.0), (0.1, 1.0 + 0.25 + 0.1)])
def test_a_new_prompt_is_seen_after_one_block_seen_and_one_made(margin: float | None, most: float) -> None:
    """At whatever moment it is given; without a margin the block that is made may have been begun a block ago."""
    delays = []
    for step in range(20):
        clock = Clock(runs=True)
        begun, applied = clock.seconds, []
        at = begun + 6.0 + 0.05 * step
        buffer = ViewerBuffer(FRAMES, margin=margin, now=clock.now, wait=clock.wait)
        with KeepUp(Slow(clock), policy="just-in-time", buffer=buffer, until=12) as keep:
            clock.alarm = at, lambda keep=keep, applied=applied: applied.append(keep.at_block(lambda one: one.index))
            assert numbers(keep) == list(range(12))
            # The first one is seen once it is made, and no stop follows.
            delays.append(begun + 0.25 + applied[0].result(PATIENCE) - at)
    assert min(delays) > 0.25
    assert max(delays) <= most + 1e-6
    assert max(delays) > most - 0.15


def test_the_buffer_knows_what_is_not_seen() -> None:
    clock = Clock()
    buffer = clock.buffer()
    assert (buffer.seconds, buffer.seconds_early(0)) == (0.0, 0.0)
    buffer.add(8)
    clock.seconds += 0.5
    assert (buffer.seconds, buffer.seconds_early(4), buffer.seconds_early(8)) == (1.5, 0.5, 0.0)
    buffer.pause()
    buffer.pause()
    clock.seconds += 9.0
    buffer.add(2)
    assert (buffer.paused, buffer.seconds, buffer.seconds_early(4)) == (True, 2.0, None)
    buffer.play()
    buffer.play()
    clock.seconds += 5.0
    # Three seconds nothing was shown: they are not made up for.
    buffer.add(4)
    assert (buffer.paused, buffer.seconds) == (False, 1.0)


def test_with_a_margin_a_block_begins_as_late_as_the_slowest_ones_allow() -> None:
    clock = Clock()
    buffer = ViewerBuffer(FRAMES, margin=0.125, now=clock.now, wait=clock.wait)
    buffer.add(8)
    assert buffer.seconds_early(4) == 1.0  # nothing is known yet: one block is left
    for seconds in (0.25, 0.5, 0.25):
        buffer.block_begins()
        clock.seconds += seconds
        buffer.block_is_made()
    buffer.add(12)
    assert buffer.seconds == 4.0
    assert buffer.seconds_early(4) == 4.0 - 0.625
    for _ in range(8):
        buffer.block_begins()
        buffer.block_is_made()
    assert buffer.seconds_early(4) == 4.0 - 0.125
    buffer.block_begins()
    clock.seconds += 2.0
    buffer.block_is_made()
    assert buffer.seconds_early(4) == 1.0  # never earlier than one block before


def test_the_policy_and_the_buffer_go_together() -> None:
    with pytest.raises(ConfigError, match="give both or neither"):
        KeepUp(Counting(), policy="just-in-time")
    with pytest.raises(ConfigError, match="give both or neither"):
        KeepUp(Counting(), buffer=Clock().buffer())
