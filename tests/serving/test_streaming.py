"""A stream put out with threads, script and snapshots is the stream that plain iteration gives, bit for bit."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from arl2.errors import ConfigError, SnapshotError
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.keep_up import KeepUp
from arl2.serving.outputs.hls import HlsOutput
from arl2.serving.script import BlockTimes, Change, Entry, Moment
from arl2.serving.streaming import Snapshots, StreamRun
from arl2.video.formats import VideoFileError
from arl2.video.pixels import Frames
from arl2.video.writing import VideoWriter
from pipeline.stand_in import stand_in_pipeline

PROMPT = "a red circle moves right"
TIMES = BlockTimes(fps=16, temporal_factor=4, block_frames=3, first_block_frames=3)


class Kept(VideoWriter):
    """Keeps everything; fails at a block if it shall."""

    def __init__(self, fails_at: int | None = None, failure: Exception | None = None) -> None:
        self.pieces: list[np.ndarray] = []
        self.cuts: list[int] = []
        self.closed = 0
        self._fails_at, self._failure = fails_at, failure or VideoFileError("no room")

    def write(self, frames: Frames) -> None:
        if len(self.pieces) == self._fails_at:
            raise self._failure
        self.pieces.append(frames)

    def mark_cut(self) -> None:
        self.cuts.append(sum(len(piece) for piece in self.pieces))

    def close(self) -> None:
        self.closed += 1

    @property
    def video(self) -> np.ndarray:
        return np.concatenate(self.pieces)


@pytest.fixture(scope="module")
def pipe() -> ARL2Pipeline:
    return stand_in_pipeline()


def plain(pipe: ARL2Pipeline, blocks: int, changes: dict[int, tuple[str, str]] | None = None) -> np.ndarray:
    """What a loop over the stream gives."""
    stream, shown = pipe.stream(PROMPT, seed=3), []
    for index in range(blocks):
        if index in (changes or {}):
            stream.change_prompt(*changes[index])
        shown.append(next(stream).pixels())
    return np.concatenate(shown)


def change(block: int, prompt: str, mode: str) -> Change:
    return Change(block, Entry(Moment(frames=TIMES.begin(block)), prompt, mode, f"block {block}"))


def test_the_same_bits_as_plain_iteration(pipe: ARL2Pipeline) -> None:
    with KeepUp(pipe.stream(PROMPT, seed=3), until=5) as keep:
        ours = list(keep)
    theirs = pipe.stream(PROMPT, seed=3)
    for block in ours:
        other = next(theirs)
        assert torch.equal(block.latents, other.latents)
        assert torch.equal(block.video, other.video)
        assert (block.index, block.first_video_frame, block.cut) == (other.index, other.first_video_frame, other.cut)


def test_a_script_takes_effect_at_its_blocks(pipe: ARL2Pipeline) -> None:
    texts = {2: ("a blue square bounces", "cut"), 4: ("a green triangle falls", "soft")}
    output = Kept()
    changes = [change(index, *words) for index, words in texts.items()]
    run = StreamRun(pipe.stream(PROMPT, seed=3), [output], times=TIMES, frames=TIMES.begin(6), changes=changes)
    said = [run.prompt for _ in run.run()]
    assert said == [PROMPT] * 2 + [texts[2][0]] * 2 + [texts[4][0]] * 2
    np.testing.assert_array_equal(output.video, plain(pipe, 6, texts))
    assert output.cuts == [TIMES.begin(2)]
    assert output.closed == 1


def test_a_rewind_is_a_discontinuity_of_the_folder(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    with KeepUp(pipe.stream(PROMPT, seed=3), until=4) as keep, HlsOutput(tmp_path / "a.hls", fps=16) as output:
        rewound = keep.at_block(lambda stream: stream.rewind(2, seed=9), index=3)
        shown = []
        for block in keep:
            if block.cut:
                output.mark_cut()
            output.write(block.pixels())
            shown.append((block.index, block.cut))
    assert rewound.exception() is None
    assert shown == [(0, False), (1, False), (2, False), (1, True), (2, False), (3, False)]
    before, after = (tmp_path / "a.hls" / "index.m3u8").read_text().split("#EXT-X-DISCONTINUITY\n")
    seconds = [sum(map(float, re.findall(r"#EXTINF:([\d.]+)", text))) for text in (before, after)]
    assert seconds == [TIMES.begin(3) / 16, (TIMES.begin(4) - TIMES.begin(1)) / 16]


def test_cut_to_what_was_asked_unless_it_is_to_go_on(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    output = Kept()
    run = StreamRun(pipe.stream(PROMPT, seed=3), [output], times=TIMES, frames=20)
    assert len(list(run.run())) == 2
    assert len(output.video) == run.video_frames == 20
    assert run.note == "20 video frames do not fill whole blocks: 21 are generated, then cut to 20."
    output, saved = Kept(), Snapshots(path=tmp_path / "s.arl2")
    run = StreamRun(pipe.stream(PROMPT, seed=3), [output], times=TIMES, frames=20, snapshots=saved)
    list(run.run())
    rest = Kept()
    again = StreamRun(pipe.resume(saved.path), [rest], times=TIMES, frames=24)
    assert again.note is None
    list(again.run())
    np.testing.assert_array_equal(np.concatenate([output.video, rest.video]), plain(pipe, 4))


def test_a_snapshot_waits_for_what_an_output_holds_back(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    class Late(Kept):
        """Would lose the last 30 frames."""

        @property
        def pending_frames(self) -> int:
            return 0 if self.closed else min(30, sum(len(piece) for piece in self.pieces))

    path = tmp_path / "s.arl2"
    run = StreamRun(
        pipe.stream(PROMPT, seed=3),
        [Late(), Kept()],
        times=TIMES,
        frames=TIMES.begin(8),
        snapshots=Snapshots(path=path, every=1),
    )
    events = run.run()
    for shown in events:
        there = pipe.resume(path).index if path.exists() else 0
        assert TIMES.begin(there) <= max(0, shown.video_frames - 30)
        assert there >= shown.block.index - 6
        assert len(list(tmp_path.glob(".s.arl2.*.part"))) <= 6  # they may be large
    assert pipe.resume(path).index == 8
    assert [one.name for one in tmp_path.iterdir()] == ["s.arl2"]


def test_snapshots_come_every_few_blocks_and_at_the_end(pipe: ARL2Pipeline, tmp_path: Path, monkeypatch) -> None:
    stream, at = pipe.stream(PROMPT, seed=3), []
    for way in ("stage", "save"):  # between blocks, and at the end
        real = getattr(type(stream), way)

        def noted(self, *words, real=real, **named):
            at.append(self.index)
            return real(self, *words, **named)

        monkeypatch.setattr(type(stream), way, noted)
    run = StreamRun(stream, times=TIMES, frames=TIMES.begin(7), snapshots=Snapshots(path=tmp_path / "s.arl2", every=2))
    list(run.run())
    assert at == [2, 4, 6, 7]
    assert run.saved_at == 7
    at.clear()
    run = StreamRun(
        pipe.resume(tmp_path / "s.arl2"), times=TIMES, frames=24, snapshots=Snapshots(path=tmp_path / "s.arl2", every=2)
    )
    list(run.run())
    assert at == [9]  # the last one is there already


def asked_after(blocks: int) -> Iterator[bool]:
    yield from [False] * blocks
    while True:
        yield True


def test_stopping_saves_where_the_pictures_end(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    output, asked = Kept(), asked_after(2)
    run = StreamRun(pipe.stream(PROMPT, seed=3), [output], times=TIMES, snapshots=Snapshots(path=tmp_path / "s.arl2"))
    blocks = len(list(run.run(lambda: next(asked))))
    assert 3 <= blocks <= 6  # those under way are put out, too
    rest = Kept()
    list(StreamRun(pipe.resume(tmp_path / "s.arl2"), [rest], times=TIMES, frames=12).run())
    np.testing.assert_array_equal(np.concatenate([output.video, rest.video]), plain(pipe, blocks + 1))


@pytest.mark.parametrize("failure", [VideoFileError("no room"), OSError(28, "no room"), RuntimeError("no room")])
def test_an_output_that_fails_does_not_lose_the_stream(pipe, tmp_path: Path, failure: Exception) -> None:
    failing, other = Kept(2, failure), Kept()
    run = StreamRun(
        pipe.stream(PROMPT, seed=3), [other, failing], times=TIMES, snapshots=Snapshots(path=tmp_path / "s.arl2")
    )
    with pytest.raises(type(failure), match="no room"):
        list(run.run())
    assert run.missing == range(len(failing.video), TIMES.begin(run.saved_at))
    assert (failing.closed, other.closed) == (1, 1)
    resumed = pipe.resume(tmp_path / "s.arl2")
    assert resumed.index == run.saved_at >= 3
    np.testing.assert_array_equal(next(resumed).pixels(), plain(pipe, run.saved_at + 1)[-12:])


def test_a_snapshot_that_cannot_be_written_ends_the_stream_with_whole_outputs(pipe, tmp_path: Path, caplog) -> None:
    output = Kept()
    snapshots = Snapshots(path=tmp_path / "none" / "s.arl2", every=2)
    run = StreamRun(pipe.stream(PROMPT, seed=3), [output], times=TIMES, snapshots=snapshots)
    with pytest.raises(SnapshotError, match="cannot be written"):
        list(run.run())
    assert output.closed == 1
    assert len(output.pieces) >= 2
    assert "the stream was not saved" in caplog.text


def test_a_snapshot_is_never_ahead_of_the_folder(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    """What a kill at any block leaves: a resumed stream has no hole before it."""
    folder, path, seen = tmp_path / "a.hls", tmp_path / "s.arl2", set()
    run = StreamRun(
        pipe.stream(PROMPT, seed=3),
        [HlsOutput(folder, fps=16)],
        times=TIMES,
        frames=TIMES.begin(8),
        snapshots=Snapshots(path=path, every=2),
    )
    for _ in run.run():
        if path.exists():
            listed = sum(map(float, re.findall(r"#EXTINF:([\d.]+)", (folder / "index.m3u8").read_text())))
            index = pipe.resume(path).index
            assert TIMES.begin(index) <= round(16 * listed)
            seen.add(index)
    assert seen >= {2, 4, 6}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.hls", "s.arl2"]
    assert "#EXT-X-DISCONTINUITY\n" not in (folder / "index.m3u8").read_text()


def test_leaving_early_closes_outputs_and_threads(pipe: ARL2Pipeline) -> None:
    output = Kept()
    events = StreamRun(pipe.stream(PROMPT, seed=3), [output], times=TIMES).run()
    next(events)
    events.close()
    assert output.closed == 1


def test_leaving_early_saves_the_stream(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    output = Kept()
    run = StreamRun(pipe.stream(PROMPT, seed=3), [output], times=TIMES, snapshots=Snapshots(path=tmp_path / "s.arl2"))
    events = run.run()
    next(events)
    events.close()
    resumed = pipe.resume(tmp_path / "s.arl2")
    assert run.missing == range(len(output.video), resumed.video_frames)


def test_a_rescue_that_fails_does_not_hide_what_happened(
    pipe: ARL2Pipeline, tmp_path: Path, caplog, monkeypatch
) -> None:
    stream = pipe.stream(PROMPT, seed=3)

    def no_memory(self, *words, **named) -> None:
        raise MemoryError("nor is there memory")

    monkeypatch.setattr(type(stream), "save", no_memory)
    run = StreamRun(stream, [Kept(fails_at=1)], times=TIMES, snapshots=Snapshots(path=tmp_path / "s.arl2"))
    with pytest.raises(VideoFileError, match="no room"):
        list(run.run())
    assert "the stream was not saved: nor is there memory" in caplog.text


@pytest.mark.parametrize("words", [{"frames": 0}, {"snapshots": Snapshots(path=Path("s.arl2"), every=0)}])
def test_numbers_below_one(pipe: ARL2Pipeline, words: dict) -> None:
    with pytest.raises(ConfigError, match="give 1 or more"):
        StreamRun(pipe.stream(PROMPT), times=TIMES, **words)
