"""Outputs of streams other than HLS: cuts are marked, vanished readers are noticed, terminals get their cursor back."""

import io
import json
import os
import pty
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from arl2.errors import ConfigError
from arl2.serving.outputs.hls import HlsOutput
from arl2.serving.outputs.opening import check_output, open_output
from arl2.serving.outputs.preview import TerminalPreview, changes, require_terminal, to_cells
from arl2.serving.outputs.raw import RawOutput, ReaderGoneError
from arl2.serving.pace import Pace
from arl2.video.encoded import EncodedVideo
from arl2.video.formats import VideoFileError
from arl2.video.reading import read_video
from arl2.video.writing import VideoWriter, cuts_path


def noise(frames: int, size: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (frames, size, size, 3), dtype=np.uint8)


# Files


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a"])
def test_cuts_of_files_stand_beside_them(tmp_path: Path, name: str) -> None:
    cuts_path(tmp_path / name).write_text("of an older video")
    with open_output(tmp_path / name, fps=8) as output:
        output.mark_cut()  # before the first frame: nothing
        output.write(noise(5))  # now the older video gives way, and its cuts with it
        assert not cuts_path(tmp_path / name).exists()
        output.mark_cut()
        output.mark_cut()
        output.write(noise(3))
        output.write(noise(2))
        output.mark_cut()  # after the last
    assert len(read_video(tmp_path / name)) == 10
    lines = cuts_path(tmp_path / name).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"video_frame": 5, "seconds": 0.625}]


def test_cuts_of_raw_video_stand_in_it(tmp_path: Path) -> None:
    path = tmp_path / "a.y4m"
    with open_output(path, fps=8) as output:
        assert isinstance(output, RawOutput)
        output.mark_cut()
        output.write(noise(2))
        output.mark_cut()
        output.write(noise(2))
    heads = re.findall(rb"FRAME( \w+)?\n", path.read_bytes())
    assert heads[:1] == [b""]
    assert heads.count(b" XCUT") == 1
    assert len(read_video(path)) == 4  # other programs pass the mark over


# Which output a name means


def test_names_say_the_output(tmp_path: Path) -> None:
    for name, kind in (("a.mp4", EncodedVideo), ("a.hls", HlsOutput), ("b", VideoWriter), ("a.y4m", RawOutput)):
        with open_output(tmp_path / name, fps=8) as output:
            assert isinstance(output, kind)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.webp", "is kept in memory until it is closed"),
        ("a.m3u8", "give a folder, such as 'a.hls'"),
        ("a.avi", "accepted are"),
        ("file.hls", "is a file, but a folder of segments"),
        ("full.hls", "is not empty"),
        ("file.hls/b.hls", "cannot be made"),
        ("folder.mp4", "is a folder"),
    ],
)
def test_places_that_do_not_fit(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file.hls").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "full.hls").mkdir()
    (tmp_path / "full.hls" / "a.txt").write_text("")
    with pytest.raises(VideoFileError, match=message):
        check_output(tmp_path / name)


def test_a_stream_that_goes_on_overwrites_nothing(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.y4m"):
        (tmp_path / name).write_bytes(b"an hour of video")
        check_output(tmp_path / name)
        with pytest.raises(VideoFileError, match="exists, and a closed file cannot be added to"):
            open_output(tmp_path / name, fps=8, going_on=True)
        assert (tmp_path / name).read_bytes() == b"an hour of video"


def test_only_segments_can_leave(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a folder that ends in \.hls"):
        open_output(tmp_path / "a.mp4", fps=8, keep_seconds=60)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(VideoFileError, match="permission denied"):
        check_output(tmp_path / "a.hls")


# Pipes

posix = pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX's")


@posix
def test_a_named_pipe_waits_for_its_reader_and_gives_it_everything(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert check_output(path) == "raw"
    taken: list[bytes] = []
    reader = threading.Thread(target=lambda: taken.append(path.read_bytes()))
    with open_output(path, fps=8) as output:
        reader.start()
        output.write(noise(40, 64))  # more than a pipe holds
    reader.join(20)
    (tmp_path / "copy.y4m").write_bytes(taken[0])
    assert len(read_video(tmp_path / "copy.y4m")) == 40


@posix
def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    output = RawOutput(path, fps=8)
    output.write(noise(1))
    os.close(end)
    with pytest.raises(ReaderGoneError, match="pipe' went away; the stream ends here"):
        output.write(noise(1))
    output.close()
    output.close()


@posix
@pytest.mark.parametrize("there", [True, False])
def test_a_reader_that_never_reads_is_given_up_when_the_stream_is_to_stop(tmp_path, monkeypatch, there: bool) -> None:
    monkeypatch.setattr("arl2.serving.outputs.raw._PATIENCE", 0.0)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    end = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if there else None
    asked = iter([False, False])
    output = RawOutput(path, fps=8, stopped=lambda: next(asked, True))
    with pytest.raises(ReaderGoneError, match="takes nothing"):
        output.write(noise(40, 64))
    assert next(asked, None) is None  # it was patient while nobody asked
    output.close()
    if end is not None:
        os.close(end)


# The terminal


class Screen(io.StringIO):
    """A terminal of fixed size that records what is sent."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError("no descriptor")


def drawn(text: str, rows: int, columns: int, before: np.ndarray | None = None) -> np.ndarray:
    """What a terminal shows after these commands; only those that the preview uses."""
    cells = np.zeros((rows, columns, 6), dtype=np.uint8) if before is None else before.copy()
    row = column = 0
    ink = np.zeros(6, dtype=np.uint8)
    for place, colour, block in re.findall(r"\x1b\[(\d+;\d+)H|\x1b\[38;2;([\d;]+)m|(\u2580)", text):
        if place:
            row, column = (int(one) - 1 for one in place.split(";"))
        elif colour:
            numbers = [int(one) for one in colour.split(";")]
            assert numbers[3:5] == [48, 2]
            ink = np.array(numbers[:3] + numbers[5:], dtype=np.uint8)
        elif block:
            cells[row, column] = ink
            column += 1
    return cells


few_colours = arrays(np.uint8, (3, 5, 6), elements=st.sampled_from([0, 128, 255]))


@given(before=few_colours, after=few_colours)
@settings(max_examples=40, deadline=None)
def test_changes_make_the_new_picture(before: np.ndarray, after: np.ndarray) -> None:
    first = drawn(changes(before, None), 3, 5)
    np.testing.assert_array_equal(first, before)
    np.testing.assert_array_equal(drawn(changes(after, before), 3, 5, first), after)
    assert changes(after, after) == ""


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 120), st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_pictures_fit_the_terminal(height: int, width: int, columns: int, rows: int) -> None:
    cells = to_cells(np.zeros((height, width, 3), dtype=np.uint8), columns, rows)
    assert 1 <= cells.shape[0] <= min(rows, max(1, height))
    assert 1 <= cells.shape[1] <= min(columns, width)


def test_a_small_picture_is_shown_pixel_by_pixel() -> None:
    frame = noise(1, 6)[0]
    cells = to_cells(frame, 80, 24)
    np.testing.assert_array_equal(cells[..., :3], frame[0::2])
    np.testing.assert_array_equal(cells[..., 3:], frame[1::2])


def test_the_cursor_comes_back_and_captions_command_nothing() -> None:
    screen = Screen()
    with TerminalPreview(screen, pace=None, caption=lambda: "a red\x1b[2J circle " + "x" * 200) as preview:
        preview.write(noise(4, 8))
        text = screen.getvalue()
        assert text.count("\x1b[?25l") == 1
        np.testing.assert_array_equal(drawn(text, 4, 8), to_cells(noise(4, 8)[-1], 80, 23))
        assert "a red[2J circle" in text
        assert "x" * 80 not in text
        assert text.count("\x1b[2J") == 1
    preview.close()
    assert screen.getvalue().endswith("\x1b[?25h\n")


def test_every_frame_has_its_time_when_there_is_a_pace() -> None:
    slept: list[float] = []
    screen, clock = Screen(), [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    pace = Pace(10, now=lambda: clock[0], sleep=sleep)
    with TerminalPreview(screen, pace=pace, caption=lambda: "") as preview:
        preview.write(noise(5, 8))
    assert sum(slept) == pytest.approx(0.5)


def test_a_terminal_that_went_away_does_not_end_the_stream() -> None:
    class Gone(Screen):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    with TerminalPreview(Gone(), pace=None, caption=lambda: "") as preview:
        preview.write(noise(2))


def test_where_nothing_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    require_terminal(Screen())
    with pytest.raises(VideoFileError, match="this is no terminal"):
        require_terminal(io.StringIO())
    latin = Screen()
    latin.encoding = "latin-1"
    with pytest.raises(VideoFileError, match="latin-1; use UTF-8"):
        require_terminal(latin)
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(VideoFileError, match="cannot place its cursor"):
        require_terminal(Screen())


@posix
def test_a_real_terminal_says_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        require_terminal(terminal)
        with TerminalPreview(terminal, pace=None, caption=lambda: "caption") as preview:
            preview.write(noise(1, 4))
        assert "caption" in os.read(ours, 100_000).decode()
    os.close(ours)


# Pacing


def test_pace_is_even_and_does_not_hurry_after_a_delay() -> None:
    clock = [100.0]
    pace = Pace(10, now=lambda: clock[0], sleep=lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    pace.wait(10)
    assert clock[0] == pytest.approx(101)
    clock[0] += 0.04  # a little late is made up for
    pace.wait(1)
    assert clock[0] == pytest.approx(101.1)
    clock[0] += 5
    pace.wait(10)
    assert clock[0] == pytest.approx(107.1)


def test_pace_ends_when_the_person_asks() -> None:
    clock = [0.0]
    pace = Pace(
        1, stopped=lambda: clock[0] >= 2, now=lambda: clock[0], sleep=lambda s: clock.__setitem__(0, clock[0] + s)
    )
    pace.wait(1000)
    assert clock[0] < 2.2


@pytest.mark.parametrize(("name", "kept"), [("a.hls", "index.m3u8"), ("a", "00000.png")])
def test_a_folder_of_an_earlier_video_is_replaced_when_that_is_asked_for(tmp_path: Path, name: str, kept: str) -> None:
    path = tmp_path / name
    for frames in (70, 3):
        with open_output(path, fps=16, overwrite=True) as output:
            output.write(np.full((frames, 32, 32, 3), frames, np.uint8))
    assert (path / kept).is_file()
    assert len(list(path.iterdir())) == (2 if name == "a.hls" else 4)
    with pytest.raises(VideoFileError, match="is there already"):
        check_output(path, overwrite=False)
    (path / "letter.txt").write_text("dear")
    with pytest.raises(VideoFileError, match="is not empty, and holds other things"):
        check_output(path, overwrite=True)
