"""Keep-up: threads and bounded queues between a stream and its consumer change when pictures come, never which."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.errors import ConfigError, StreamError
from arl2.geometry import FrameRange
from arl2.rollout.blocks import Block, VideoBlock
from arl2.serving.keep_up import POLICIES, KeepUp, Policy
from arl2.serving.pace import ViewerBuffer

PATIENCE = 20.0


class Counting:
    """A stream of known numbers that refuses blocks out of order and work from two threads at one place.

    Args:
        blocks: where it ends; None never.
        gates: released once for each block that may be denoised; None lets all through.
    """

    def __init__(self, blocks: int | None = None, gates: threading.Semaphore | None = None) -> None:
        self.index, self.decoded = 0, 0
        self.broken_at: dict[str, int] = {}
        self.most_ahead = 0
        self._blocks, self._gates = blocks, gates
        self._cut, self._frames = False, 0
        self._in: dict[str, threading.Lock] = {"denoise": threading.Lock(), "decode": threading.Lock()}

    def latents_next(self) -> Block:
        assert not torch.is_grad_enabled()
        if self.index == self._blocks:
            raise StopIteration
        if self._gates is not None:
            assert self._gates.acquire(timeout=PATIENCE)
        with self._alone("denoise"):
            number, self.index = self.index, self.index + 1
            cut, self._cut = self._cut, False
            latents = torch.full((1, 1, 1, 1, 1), float(number))
            self.most_ahead = max(self.most_ahead, self.index - self.decoded)
            return Block(number, FrameRange(number, number + 1), latents, 0.0, 0.0, cut)

    def decode(self, block: Block) -> VideoBlock:
        assert not torch.is_grad_enabled()
        with self._alone("decode"):
            assert block.index == self.decoded, "a causal decoder takes blocks in order"
            self.decoded += 1
            self._frames += 4
            video = block.latents.expand(1, 3, 4, 2, 2)
            return VideoBlock(
                block.index, block.frames, block.latents, self._frames - 4, video, 0.0, 0.0, 0.0, block.cut
            )

    def rewind(self, blocks: int) -> None:
        """Possible only when everything is decoded."""
        assert self.decoded == self.index
        self.index -= blocks
        self.decoded, self._cut = self.index, True

    def _alone(self, what: str) -> threading.Lock:
        if self.broken_at.get(what) == (self.index if what == "denoise" else self.decoded):
            raise RuntimeError(f"{what} broke")
        assert not self._in[what].locked()
        return self._in[what]


def until(said) -> None:
    """Wait for something that a thread will make true."""
    end = time.monotonic() + PATIENCE
    while not said():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


def numbers(blocks: Iterator[VideoBlock]) -> list[int]:
    return [int(block.video[0, 0, 0, 0, 0]) for block in blocks]


@given(ahead=st.integers(1, 4), blocks=st.integers(0, 12), action_at=st.sets(st.integers(0, 13), max_size=4))
@settings(max_examples=40, deadline=None)
def test_waiting_gives_every_block_in_order(ahead: int, blocks: int, action_at: set[int]) -> None:
    stream = Counting(blocks)
    with KeepUp(stream, ahead=ahead) as keep:
        asked = {index: keep.at_block(lambda one: (one.index, one.decoded), index=index) for index in action_at}
        assert numbers(keep) == list(range(blocks))
        assert keep.dropped_blocks == 0
    for index, done in asked.items():
        # Exactly before its block, everything decoded; never, where the stream ends before.
        assert done.cancelled() if index > blocks else done.result(0) == (index, index)
    assert stream.most_ahead <= ahead + 2


def test_a_consumer_that_never_reads_holds_the_stream_up() -> None:
    stream = Counting()
    with KeepUp(stream, ahead=2) as keep:
        assert next(keep).index == 0
        # Two wait for it, one is in the decoder's hand, two wait for the decoder.
        until(lambda: stream.index == 6)
        time.sleep(0.05)
        assert stream.index == 6
    assert [thread for thread in threading.enumerate() if thread.name.startswith("arl2")] == []


def test_dropping_never_holds_the_stream_up_and_says_what_is_missing() -> None:
    stream = Counting(50)
    with KeepUp(stream, ahead=2, policy="drop") as keep:
        first = next(keep)
        until(lambda: stream.decoded == 50)
        rest = list(keep)
        shown = [first, *rest]
        assert len(rest) <= 3
        assert shown[-1].index == 49
        assert keep.dropped_blocks == 50 - len(shown) > 0
        assert keep.dropped_frames == 4 * keep.dropped_blocks
    for before, block in itertools.pairwise(shown):
        assert block.cut == (block.index != before.index + 1)


def test_a_cut_that_was_dropped_is_still_a_cut() -> None:
    stream = Counting(7, gate := threading.Semaphore(0))
    with KeepUp(stream, policy="drop") as keep:
        rewound = keep.at_block(lambda one: one.rewind(2), index=4)
        gate.release(1)
        seen = [next(keep).index]
        gate.release(2)
        # A decoded block is not yet one that was handed out: how many were dropped says that.
        until(lambda: keep.dropped_blocks == 1)
        seen.append(next(keep).index)
        assert seen == [0, 2]
        gate.release(9)
        until(lambda: rewound.done() and keep.dropped_blocks == 6)
        last = list(keep)
    assert rewound.exception() is None
    assert [block.index for block in last] == [6]
    assert last[0].cut


def test_actions_asked_meanwhile_run_before_the_next_block_even_if_nobody_reads() -> None:
    stream = Counting()
    with KeepUp(stream, ahead=1) as keep:
        next(keep)
        until(lambda: stream.index == 4)
        quiet = keep.at_block(lambda one: (one.index, one.decoded)).result(PATIENCE)
        assert quiet == (4, 4)
        rewound: Future[None] = keep.at_block(lambda one: one.rewind(3))
        rewound.result(PATIENCE)
        # What was made before the rewind still comes, then the cut.
        shown = [next(keep) for _ in range(5)]
        assert [(block.index, block.cut) for block in shown] == [
            (1, False),
            (2, False),
            (3, False),
            (1, True),
            (2, False),
        ]


def test_actions_without_a_consumer_do_not_heap_pictures_up() -> None:
    stream = Counting()
    with KeepUp(stream, ahead=2) as keep:
        next(keep)
        for _ in range(50):
            keep.at_block(lambda one: None).result(PATIENCE)
        assert stream.index <= 1 + 2 + 1 + 2 + 1


def test_an_action_may_ask_for_the_next_one() -> None:
    stream, saved = Counting(10), []

    def save(one: Counting) -> None:
        saved.append((one.index, one.decoded))
        keep.at_block(save, index=one.index + 3)

    with KeepUp(stream) as keep:
        keep.at_block(save, index=3)
        assert numbers(keep) == list(range(10))
    assert saved == [(3, 3), (6, 6), (9, 9)]


def test_an_actions_error_is_its_own() -> None:
    def fail(one: Counting) -> None:
        raise ConfigError("this prompt names nothing")

    with KeepUp(Counting(3)) as keep:
        failed = keep.at_block(fail, index=1)
        assert numbers(keep) == [0, 1, 2]
    with pytest.raises(ConfigError, match="names nothing"):
        failed.result(0)


@pytest.mark.parametrize("where", ["denoise", "decode"])
@pytest.mark.parametrize("policy", POLICIES)
def test_errors_of_threads_reach_the_consumer_after_whole_blocks(where: str, policy: Policy) -> None:
    stream = Counting()
    stream.broken_at[where] = 3
    buffer = ViewerBuffer(1000) if policy == "just-in-time" else None
    with KeepUp(stream, policy=policy, buffer=buffer) as keep:
        later = keep.at_block(lambda one: None, index=9)
        shown: list[int] = []
        with pytest.raises(RuntimeError, match=f"{where} broke"):
            shown.extend(block.index for block in keep)
        assert list(keep) == []
        until(later.cancelled)
    assert stream.decoded == 3


def test_stop_hands_out_what_is_under_way_and_leaves_the_stream_quiet() -> None:
    stream = Counting()
    with KeepUp(stream, ahead=2) as keep:
        shown = [next(keep).index]
        until(lambda: stream.index == 6)
        asked = keep.at_block(lambda one: one.index)
        keep.stop()
        shown += [block.index for block in keep]
        assert shown == list(range(stream.index))
        assert stream.decoded == stream.index
        assert asked.result(0) == 6
        with pytest.raises(StreamError, match="the stream itself"):
            keep.at_block(lambda one: None)


def test_until_is_the_first_block_that_is_not_made() -> None:
    stream = Counting()
    with KeepUp(stream, until=5) as keep:
        last = keep.at_block(lambda one: one.decoded, index=5)
        assert numbers(keep) == [0, 1, 2, 3, 4]
        assert last.result(0) == 5
    assert stream.index == 5


def test_closing_ends_threads_in_any_state() -> None:
    gate = threading.Semaphore(0)
    never_begun = KeepUp(Counting())
    never_begun.close()
    assert list(never_begun) == []
    keep = KeepUp(Counting(gates=gate))
    waiting = threading.Thread(target=lambda: list(keep))
    waiting.start()
    pending = keep.at_block(lambda one: None, index=7)
    gate.release(1)
    closing = threading.Thread(target=keep.close)
    closing.start()
    # It waits for the pass under way, no longer: the stream itself would go on.
    gate.release(1000)
    for thread in (closing, waiting):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert pending.cancelled()
    keep.close()


@pytest.mark.parametrize(("words", "said"), [({"ahead": 0}, "give 1 or more"), ({"policy": "grow"}, "just-in-time")])
def test_what_cannot_be_is_refused(words: dict, said: str) -> None:
    # The checker of the tests refuses unknown words by itself, as a static one does.
    with pytest.raises((ConfigError, TypeError), match=said if "ahead" in words else None):
        KeepUp(Counting(), **words)


@pytest.mark.parametrize("started", [0, 1])
def test_a_thread_that_cannot_start_is_an_error_and_no_hang(monkeypatch: pytest.MonkeyPatch, started: int) -> None:
    start, count = threading.Thread.start, itertools.count()

    def refusing(thread: threading.Thread) -> None:
        if next(count) >= started:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    with KeepUp(Counting()) as keep:
        with pytest.raises(StreamError, match=r"cannot be started \(can't start new thread\)"):
            next(keep)
        assert list(keep) == []
