"""Folders of HLS: what is written plays back frame by frame, at every moment, and does not grow if it shall not."""

import os
import re
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.errors import ConfigError, GeometryError
from arl2.files.atomic import write_atomically
from arl2.serving.outputs.hls import HlsOutput
from arl2.serving.outputs.hls_playlist import PLAYLIST, Playlist, Segment, read_playlist
from arl2.serving.outputs.opening import check_output
from arl2.video.formats import VideoFileError

FPS = 8


def pictures(*numbers: int, side: int = 32) -> np.ndarray:
    """Frames that carry their number, a stripe for each bit: H.264 cannot blur that."""
    bits = np.array([[number >> bit & 1 for bit in range(8)] for number in numbers], dtype=np.uint8)
    columns = np.repeat(200 * bits + 25, -(-side // 8), axis=1)[:, :side]
    return np.broadcast_to(columns[:, None, :, None], (len(numbers), side, side, 3)).copy()


def numbers_of(path: Path) -> list[int]:
    """The other way round: of a segment or of a whole playlist."""
    found = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            stripes = frame.to_ndarray(format="rgb24").mean(axis=(0, 2)).reshape(8, -1).mean(axis=1)
            found.append(sum(1 << bit for bit in range(8) if stripes[bit] > 128))
    return found


def segments(folder: Path) -> list[Path]:
    lines = (folder / PLAYLIST).read_text().splitlines()
    return [folder / line for line in lines if line and not line.startswith("#")]


@given(
    blocks=st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=4),
    seconds=st.sampled_from([0.1, 0.5, 1.0]),
)
@settings(max_examples=8, deadline=None)
def test_segments_hold_every_frame_and_begin_at_cuts(tmp_path_factory, blocks, seconds: float) -> None:
    folder = tmp_path_factory.mktemp("hls") / "live.hls"
    count, cuts = 0, set()
    with HlsOutput(folder, fps=FPS, segment_seconds=seconds) as output:
        for frames, cut in blocks:
            if cut:
                output.mark_cut()
                cuts |= {count} if count else set()
            if frames:
                output.write(pictures(*range(count, count + frames)))
            count += frames
    if not count:
        assert not (folder / PLAYLIST).exists()
        return
    shown, begins, marks = [], [], re.split(r"#EXTINF:[\d.]+,", (folder / PLAYLIST).read_text())[:-1]
    for segment, before in zip(segments(folder), marks, strict=True):
        begins.append(len(shown))
        alone = numbers_of(segment)
        assert 1 <= len(alone) <= max(1, round(seconds * FPS))
        assert ("EXT-X-DISCONTINUITY\n" in before) == (len(shown) in cuts)
        shown += alone
    assert shown == numbers_of(folder / PLAYLIST) == list(range(count))
    assert {cut for cut in cuts if cut < count} <= set(begins)
    assert (folder / PLAYLIST).read_text().endswith("#EXT-X-ENDLIST\n")


def test_whoever_looks_finds_whole_segments(tmp_path: Path) -> None:
    folder = tmp_path / "live.hls"
    output = HlsOutput(folder, fps=FPS, segment_seconds=1)
    for first in range(0, 40, 5):
        output.write(pictures(*range(first, first + 5)))
        done = first + 5 - 1
        if done >= FPS:
            text = (folder / PLAYLIST).read_text()
            assert "ENDLIST" not in text
            assert "PLAYLIST-TYPE:EVENT" in text
            assert [number for one in segments(folder) for number in numbers_of(one)] == list(range(done // FPS * FPS))
    output.close()
    output.close()
    assert list(folder.glob("*.part")) == []


def test_times_run_on_from_segment_to_segment(tmp_path: Path) -> None:
    with HlsOutput(tmp_path / "a.hls", fps=FPS, scale=2, segment_seconds=1) as output:
        output.write(pictures(*range(20)))
    with av.open(str(tmp_path / "a.hls" / PLAYLIST)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (64, 64)
        frames = list(container.decode(stream))
    times = [float(frame.time) - float(frames[0].time) for frame in frames]
    assert times == pytest.approx([number / FPS for number in range(20)], abs=1e-4)
    for segment in segments(tmp_path / "a.hls"):
        with av.open(str(segment)) as container:
            assert next(container.decode(video=0)).key_frame


def test_a_sliding_window_keeps_disk_and_playlist_bounded(tmp_path: Path) -> None:
    folder, most = tmp_path / "live.hls", 0
    with HlsOutput(folder, fps=FPS, segment_seconds=1, keep_seconds=3) as output:
        for first in range(0, 160, 8):
            if first == 80:
                output.mark_cut()
            output.write(pictures(*range(first, first + 8)))
            most = max(most, len(list(folder.iterdir())))
            if (folder / PLAYLIST).exists():
                assert 1 <= len(segments(folder)) <= 4
                assert all(one.exists() for one in segments(folder))
                # The mark of a cut is counted when it has left.
                text = (folder / PLAYLIST).read_text()
                number = int(re.search(r"MEDIA-SEQUENCE:(\d+)", text)[1])
                assert f"DISCONTINUITY-SEQUENCE:{int(number > 10)}\n" in text
        assert "PLAYLIST-TYPE" not in text
    assert most <= 3 + 3 + 4
    assert len(list(folder.glob("*.ts"))) == len(segments(folder))
    assert numbers_of(folder / PLAYLIST) == list(range(160 - 8 * len(segments(folder)), 160))


def test_a_stream_that_goes_on_adds_to_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "live.hls"
    killed = HlsOutput(folder, fps=FPS, segment_seconds=1)
    killed.write(pictures(*range(20)))  # two segments are out, half a one is lost
    (folder / "segment-00000002.ts").write_bytes(b"half")
    (folder / ".segment-00000002.ts.0123abcd.part").write_bytes(b"half")
    (folder / "segment-00000002.ts.part").write_bytes(b"mine")
    with pytest.raises(VideoFileError, match="is being written by another process"):
        HlsOutput(folder, fps=FPS, append=True)
    os.close(killed._lock)  # as the system does for a killed process
    with HlsOutput(folder, fps=FPS, segment_seconds=1, append=True) as output:
        output.write(pictures(*range(16, 30)))
    assert [number for one in segments(folder) for number in numbers_of(one)] == list(range(30))
    text = (folder / PLAYLIST).read_text()
    assert text.count("#EXT-X-DISCONTINUITY\n") == 1
    assert text.index("segment-00000001") < text.index("#EXT-X-DISCONTINUITY\n") < text.index("segment-00000002")
    assert text.count("ENDLIST") == 1
    assert (folder / "segment-00000002.ts.part").read_bytes() == b"mine"
    assert sorted(one.name for one in folder.glob("*.ts")) == [one.name for one in segments(folder)]
    assert [one.name for one in folder.iterdir() if one.name.startswith(".")] == []


def test_frames_that_are_listed_already_are_not_written_twice(tmp_path: Path) -> None:
    folder = tmp_path / "live.hls"

    def run(first: int, end: int, stream: str, *, killed: bool = False, block: int = 5) -> str | None:
        output = HlsOutput(folder, fps=FPS, segment_seconds=1, append=first > 0)
        for begin in range(first, end, block):
            output.place(begin, stream)
            output.write(pictures(*range(begin, min(begin + block, end))))
            assert 0 <= output.pending_frames <= FPS + 1
        if killed:
            os.close(output._lock)
        else:
            output.close()
        return output.note

    run(0, 20, "aa", killed=True)  # 16 are listed
    assert run(10, 40, "aa") == f"'{folder}' has video frames 10 to 15 already; they are not written again"
    assert numbers_of(folder / PLAYLIST) == list(range(40))
    # Times run on, so that a player shows it as one video.
    with av.open(str(folder / PLAYLIST)) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]
    assert np.diff(times) == pytest.approx(1 / FPS, abs=1e-3)
    assert run(40, 44, "aa") is None
    assert "video frames 44 to 49 are not in" in run(50, 52, "aa")
    assert "has video frames 48 to 51 of the prompt before" in run(48, 60, "bb")
    assert run(55, 70, "bb").startswith(f"'{folder}' has video frames 55 to 59 already")
    assert numbers_of(folder / PLAYLIST) == [*range(44), 50, 51, *range(48, 70)]
    assert (folder / PLAYLIST).read_text().count("#EXT-X-DISCONTINUITY\n") == 5


def test_a_resumed_stream_may_add_nothing_new(tmp_path: Path) -> None:
    folder = tmp_path / "live.hls"
    for append in (False, True):
        with HlsOutput(folder, fps=FPS, segment_seconds=1, append=append) as output:
            output.place(0, "aa")
            output.write(pictures(*range(10)))
    assert numbers_of(folder / PLAYLIST) == list(range(10))
    assert (folder / PLAYLIST).read_text().endswith("#EXT-X-ENDLIST\n")


def test_a_start_that_was_killed_before_its_first_playlist_is_in_nobodys_way(tmp_path: Path) -> None:
    folder = tmp_path / "live.hls"
    folder.mkdir()
    (folder / ".index.m3u8.0123abcd.part").write_bytes(b"half")
    (folder / "segment-00000000.ts").write_bytes(b"G")
    with HlsOutput(folder, fps=FPS) as output:
        output.write(pictures(1, 2))
    assert sorted(one.name for one in folder.iterdir()) == [PLAYLIST, "segment-00000000.ts"]
    (tmp_path / "b.hls").mkdir()
    (tmp_path / "b.hls" / "segment-00000000.ts").write_bytes(b"G")
    (tmp_path / "b.hls" / "mine.txt").write_bytes(b"mine")
    with pytest.raises(VideoFileError, match="is not empty"):
        HlsOutput(tmp_path / "b.hls", fps=FPS)
    assert len(list((tmp_path / "b.hls").iterdir())) == 2


def test_a_flush_lists_everything_and_is_no_cut(tmp_path: Path) -> None:
    folder = tmp_path / "live.hls"
    with HlsOutput(folder, fps=FPS, segment_seconds=1) as output:
        output.flush()  # nothing yet
        for first, end in ((0, 3), (3, 9), (9, 20)):
            output.write(pictures(*range(first, end)))
            output.flush()
            output.flush()
            assert [number for one in segments(folder) for number in numbers_of(one)] == list(range(end))
    assert numbers_of(folder / PLAYLIST) == list(range(20))
    assert "#EXT-X-DISCONTINUITY\n" not in (folder / PLAYLIST).read_text()


def test_playlists_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = Playlist(tmp_path, 2, keep=4.0)
    for number in range(9):
        (tmp_path / written.next_name).write_bytes(b"G")
        written.add(Segment(written.next_name, 1.5, cut=number % 3 == 1))
    read = read_playlist(tmp_path, longest=1, keep=4.0)
    assert (read.listed, read.first, read.cuts_before, read.longest) == (written.listed, written.first, 2, 2)


@pytest.mark.parametrize(
    "text", ["#EXTM3U\nhttps://example.com/a.ts\n", "#EXTINF:soon,\n", "#EXT-X-MEDIA-SEQUENCE:x\n"]
)
def test_playlists_of_others_are_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / PLAYLIST).write_text(text)
    (tmp_path / "segment-00000000.ts").write_bytes(b"mine")
    with pytest.raises(VideoFileError, match="not written by this program"):
        HlsOutput(tmp_path, fps=FPS, append=True)
    assert (tmp_path / "segment-00000000.ts").read_bytes() == b"mine"


def test_places_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "full.hls").mkdir()
    (tmp_path / "full.hls" / "letter.txt").write_text("dear")
    with pytest.raises(VideoFileError, match="is not empty"):
        HlsOutput(tmp_path / "full.hls", fps=FPS)
    (tmp_path / "file.hls").write_text("")
    with pytest.raises(VideoFileError, match="Writing failed"):
        HlsOutput(tmp_path / "file.hls", fps=FPS)
    with pytest.raises(ConfigError, match="more than 0"):
        HlsOutput(tmp_path / "a.hls", fps=FPS, keep_seconds=0)
    output = HlsOutput(tmp_path / "odd.hls", fps=FPS)
    with pytest.raises(GeometryError, match="even sides"):
        output.write(pictures(1, side=33))
    with HlsOutput(tmp_path / "two.hls", fps=FPS) as output:
        output.write(pictures(1))
        with pytest.raises(GeometryError, match="one size"):
            output.write(pictures(1, side=64))


def test_a_full_disk_leaves_a_playlist_that_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "live.hls"
    output = HlsOutput(folder, fps=FPS, segment_seconds=1)
    output.write(pictures(*range(17)))

    def full(path: Path, data: bytes) -> None:
        if path.suffix == ".ts":
            raise OSError(28, "No space left on device")
        write_atomically(path, data)

    monkeypatch.setattr("arl2.serving.outputs.hls.write_atomically", full)
    with pytest.raises(VideoFileError, match=r"No space left on device.*live\.hls"):
        output.write(pictures(*range(17, 40)))
    output.close()
    assert numbers_of(folder / PLAYLIST) == list(range(16))


@pytest.mark.parametrize("failure", [av.error.InvalidDataError(1, "broken"), OSError(28, "broken")])
def test_an_encoder_that_fails_is_one_sentence(tmp_path: Path, monkeypatch, failure: Exception) -> None:
    def fail(*words) -> None:
        raise failure

    with HlsOutput(tmp_path / "a.hls", fps=FPS) as output:
        output.write(pictures(*range(4)))
        monkeypatch.setattr("arl2.serving.outputs.hls._Muxer.mux", fail)
        with pytest.raises(VideoFileError, match="broken"):
            output.write(pictures(4))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (0, "lists 0 segments, but .* holds 3"),
        (1, "lists 0 segments, but .* holds 3"),
        (7, "lists 0 segments, but .* holds 3"),
        (8, "ends in the middle of an entry"),
        (9, "ends in the middle of an entry"),
        (10, "lists 1 segments, but .* holds 3"),
        (-1, "ends in the middle of an entry"),
    ],
)
def test_a_damaged_playlist_removes_no_video(tmp_path: Path, lines: int, says: str) -> None:
    folder, killed = three_segments(tmp_path)
    text = (folder / PLAYLIST).read_text().splitlines(keepends=True)
    kept = "".join(text[:lines]) if lines >= 0 else "".join(text)[:-1]
    (folder / PLAYLIST).write_text(kept)
    for attempt in (lambda: HlsOutput(folder, fps=FPS, append=True), lambda: check_output(folder, going_on=True)):
        with pytest.raises(VideoFileError, match=says):
            attempt()
    assert {file.name: file.read_bytes() for file in folder.glob("*.ts")} == killed


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("empty", [True, False])
def test_a_listed_segment_that_is_lost_is_refused(tmp_path: Path, number: int, empty: bool) -> None:
    folder, _ = three_segments(tmp_path)
    lost = folder / f"segment-{number:08d}.ts"
    if empty:
        lost.write_bytes(b"")
    else:
        lost.unlink()
    for attempt in (lambda: HlsOutput(folder, fps=FPS, append=True), lambda: check_output(folder, going_on=True)):
        with pytest.raises(VideoFileError, match=f"lists {lost.name}, which is {'empty' if empty else 'missing'}"):
            attempt()
    assert len(list(folder.glob("*.ts"))) == 2 + empty


def test_frames_of_another_size_do_not_continue_a_folder(tmp_path: Path) -> None:
    folder, before = three_segments(tmp_path)
    with HlsOutput(folder, fps=FPS, scale=2, append=True) as output:
        output.place(24, "aa")
        with pytest.raises(VideoFileError, match=r"is 32 x 32, but frames of 64 x 64 would follow; give the --scale"):
            output.write(pictures(*range(24, 32)))
    assert {file.name: file.read_bytes() for file in folder.glob("*.ts")} == before
    assert numbers_of(folder / PLAYLIST) == list(range(24))


def test_another_stream_that_begins_where_the_list_ends_is_noted(tmp_path: Path) -> None:
    folder, _ = three_segments(tmp_path)
    for stream, said in (("bb", "ends with another prompt, or is another stream's"), ("aa", None)):
        with HlsOutput(folder, fps=FPS, append=True) as output:
            output.place(24, stream)
        assert output.note is None if said is None else said in output.note


def test_another_streams_folder_is_not_continued(tmp_path: Path) -> None:
    folder, ours = tmp_path / "k.hls", "0" * 8 + "a" * 16
    with HlsOutput(folder, fps=FPS) as output:
        output.place(0, ours)
        output.write(pictures(*range(16)))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for frame in (0, 8, 16, 24):
        output = HlsOutput(folder, fps=FPS, append=True)
        with pytest.raises(VideoFileError, match=r"holds a stream of another model or seed, .* give a new folder"):
            output.place(frame, "1" * 8 + "a" * 16)
        output.close()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    with HlsOutput(folder, fps=FPS, append=True) as output:
        output.place(16, "0" * 8 + "b" * 16)
    assert "ends with another prompt" in output.note


def three_segments(place: Path) -> tuple[Path, dict[str, bytes]]:
    folder = place / "k.hls"
    with HlsOutput(folder, fps=FPS, segment_seconds=1) as output:
        output.place(0, "aa")
        output.write(pictures(*range(24)))
    files = {file.name: file.read_bytes() for file in folder.glob("*.ts")}
    assert len(files) == 3
    return folder, files
