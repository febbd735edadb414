"""Commands to a running stream: two receipts each, and what they say is what the stream does."""

import threading
from collections.abc import Iterator

import pytest
import torch

from arl2.errors import Arl2Error, SnapshotError, StreamError
from arl2.serving.commands import Commands, Receipt
from arl2.serving.keep_up import KeepUp
from arl2.streams.stream import Stream
from rollout.streams import OTHER, PROMPT, same_bits, small_pipeline, take, uninterrupted
from serving.test_just_in_time import Clock
from serving.test_keep_up import PATIENCE, until


class Given:
    """A stream under a clock that stands still, two blocks of it taken, and every receipt that was told."""

    def __init__(self, keep: KeepUp[Stream]) -> None:
        self.keep = keep
        self.receipts: list[Receipt] = []
        self.commands = Commands(keep, self.receipts.append)
        self.seen = [next(keep), next(keep)]

    def of(self, number: int) -> list[tuple[str, int | None]]:
        """The receipts of a command, once there are two."""
        until(lambda: sum(one.number == number for one in self.receipts) == 2)
        return [(one.state, one.block) for one in self.receipts if one.number == number]


@pytest.fixture
def given() -> Iterator[Given]:
    stream = small_pipeline().stream(PROMPT, seed=3)
    clock = Clock(runs=True)
    with KeepUp(stream, policy="just-in-time", buffer=clock.buffer()) as keep:
        yield Given(keep)


def test_a_prompt_is_queued_and_then_applied_to_the_block_that_shows_it(given: Given) -> None:
    given.commands.change_prompt(OTHER).result(PATIENCE)
    (queued, none), (applied, block) = given.of(1)
    assert (queued, none, applied) == ("queued", None, "applied")
    assert block is not None
    assert block <= 3  # one is under way at the most
    stream = small_pipeline().stream(PROMPT, seed=3)
    expected = take(stream, block)
    stream.prompt = OTHER
    expected += take(stream, 5 - block)
    seen = given.seen + take(given.keep, 3)  # type: ignore[arg-type]
    assert all(same_bits(one, other) for one, other in zip(seen, expected, strict=True))


def test_what_is_refused_says_why_and_changes_nothing(given: Given) -> None:
    done = [
        given.commands.change_prompt(" "),
        given.commands.rewind(99),
        given.commands.change_prompt("a yellow zebra"),
    ]
    for number, (one, said) in enumerate(zip(done, ["is empty", "99 blocks to rewind", "zebra"], strict=True), start=1):
        assert [state for state, _ in given.of(number)] == ["queued", "refused"]
        with pytest.raises(Arl2Error, match=said):
            one.result(PATIENCE)
    assert [one.error is not None for one in given.receipts if one.state == "refused"] == [True] * 3
    seen = given.seen + take(given.keep, 2)  # type: ignore[arg-type]
    assert all(same_bits(one, other) for one, other in zip(seen, uninterrupted("HS", False, 4), strict=True))


def test_a_rewind_says_which_block_comes_again(given: Given) -> None:
    given.commands.rewind(1).result(PATIENCE)
    block = given.of(1)[1][1]
    again = next(one for one in given.keep if one.cut)
    assert again.index == block


def test_a_fork_and_a_snapshot_continue_with_the_same_bits(given: Given) -> None:
    threads: list[str] = []
    forked = given.commands.fork()
    saved = given.commands.snapshot()
    saved.add_done_callback(lambda _: threads.append(threading.current_thread().name))
    twin, data = forked.result(PATIENCE), saved.result(PATIENCE)
    forked_at = twin.index
    assert given.of(1)[1] == ("applied", twin.index)
    index = given.of(2)[1][1]
    assert index is not None
    expected = uninterrupted("HS", False, index + 2)
    with twin, small_pipeline().resume_bytes(data) as resumed:
        assert resumed.index == index
        assert same_bits(next(resumed), expected[index])
        assert same_bits(next(twin), expected[forked_at])
    assert "arl2-denoise" not in threads


def test_a_pause_and_its_end(given: Given) -> None:
    given.commands.pause().result(PATIENCE)
    assert given.keep.paused
    given.commands.play().result(PATIENCE)
    assert not given.keep.paused
    assert [given.of(number)[1][0] for number in (1, 2)] == ["applied", "applied"]
    assert next(given.keep).index == 2


def test_commands_to_a_stream_that_has_ended_are_refused(given: Given) -> None:
    given.keep.close()
    with pytest.raises(StreamError, match="has ended"):
        given.commands.pause().result(PATIENCE)
    assert [one.state for one in given.receipts] == ["queued", "refused"]


def test_a_command_that_the_end_overtakes_is_refused(given: Given) -> None:
    is_given = threading.Event()

    def end(_: Stream) -> None:
        assert is_given.wait(PATIENCE)
        given.keep.close()

    given.keep.at_block(end)
    late = given.commands.fork()
    is_given.set()
    assert given.of(1) == [("queued", None), ("refused", None)]
    with pytest.raises(Arl2Error, match="has ended before"):
        late.result(PATIENCE)


def test_bytes_are_checked_as_files_are() -> None:
    stream = small_pipeline().stream(PROMPT, seed=3)
    take(stream, 2)
    for kind in ("exact", "light"):
        data = stream.save_bytes(kind)  # type: ignore[arg-type]
        with small_pipeline().resume_bytes(data, prompt=OTHER) as resumed:
            assert (resumed.index, resumed.prompt) == (2, OTHER)
    for damaged, said in (
        (b"", "truncated"),
        (data[:-1], "truncated or appended"),
        (data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "damaged"),
    ):
        with pytest.raises(SnapshotError, match=said):
            small_pipeline().resume_bytes(damaged)
    # The checker of the tests refuses another type by itself, as a static one does.
    with pytest.raises((SnapshotError, TypeError)):
        small_pipeline().resume_bytes(torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(SnapshotError, match="is of a model of plan HS"):
        small_pipeline("SS").resume_bytes(data)


def test_bytes_are_those_of_the_file(tmp_path) -> None:
    stream = small_pipeline().stream(PROMPT, seed=3)
    take(stream, 1)
    stream.save(tmp_path / "stream.arl2")
    assert stream.save_bytes() == (tmp_path / "stream.arl2").read_bytes()
