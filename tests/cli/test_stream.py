"""``arl2 stream``: every output, scripts, snapshots, and readers and disks that go away."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from arl2.cli.main import main
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.blocks import VideoBlock
from arl2.serving.outputs.hls_playlist import PLAYLIST
from arl2.video.reading import read_video, video_info
from arl2.video.y4m import Y4mVideo
from pipeline.stand_in import stand_in_folder

PROMPT = "a red circle moves right on navy"
BLOCKS = ("--frames", "33")  # three: 9 + 12 + 12 video frames


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(stand_in_folder(tmp_path_factory.mktemp("model") / "stand-in"))


@pytest.fixture
def stream(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: main(["stream", "--model", model, *words])


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the second block is on its way out, or the first one after it if that one is dropped."""
    pixels = VideoBlock.pixels
    pressed = threading.Event()

    def interrupting(block: VideoBlock, sample: int = 0) -> np.ndarray:
        if block.index >= 1 and not pressed.is_set():
            pressed.set()
            os.kill(os.getpid(), signal.SIGINT)
        return pixels(block, sample)

    monkeypatch.setattr(VideoBlock, "pixels", interrupting)


def test_it_is_the_video_of_generate(stream, model: str, capsys) -> None:
    assert stream(PROMPT, "--frames", "20", "--seed", "7", "-o", "ours.gif", "--scale", "1") == 0
    out = capsys.readouterr().out
    assert "21 are generated, then cut to 20." in out
    assert "wrote ours.gif\n20 video frames in" in out
    assert "peak memory" in out
    words = ("--frames", "20", "--seed", "7", "-o", "theirs.gif", "--scale", "1", "--quiet")
    assert main(["generate", "--model", model, PROMPT, *words]) == 0
    assert Path("ours.gif").read_bytes() == Path("theirs.gif").read_bytes()


def test_seconds_default_name_and_settings(stream, tmp_path: Path) -> None:
    assert stream(PROMPT, "--seconds", "1.3", "--quiet", "--window", "6", "--sink", "2") == 0
    (written,) = tmp_path.iterdir()
    assert written.name.startswith("0000-a-red-circle-moves-right-on-navy-")
    assert len(read_video(written)) == 21
    assert video_info(written).settings["prompt"] == PROMPT


def test_a_snapshot_goes_on_exactly_into_the_same_folder(stream, model: str, tmp_path: Path, capsys) -> None:
    assert stream(PROMPT, *BLOCKS, "-o", "live.hls", "--snapshot", "s.arl2") == 0
    assert "The stream is saved after 3 blocks in s.arl2." in capsys.readouterr().out
    assert stream("--resume", "s.arl2", "--frames", "24", "--save-every", "1", "-o", "live.hls", "--quiet") == 0
    text = (tmp_path / "live.hls" / PLAYLIST).read_text()
    assert text.count("#EXT-X-DISCONTINUITY\n") == 1
    assert sum(float(line[8:-1]) for line in text.splitlines() if line.startswith("#EXTINF")) == pytest.approx(57 / 16)
    assert stream("--resume", "s.arl2", "--frames", "12", "-o", "rest.gif", "--scale", "1", "--quiet") == 0
    whole = ARL2Pipeline.from_pretrained(model).stream(PROMPT, seed=0)
    for _ in range(5):
        next(whole)
    expected = next(whole).pixels()
    # Gifs have few colours: near is enough to tell it from any other block.
    assert np.abs(read_video(tmp_path / "rest.gif").astype(int) - expected).mean() < 12


def test_a_script_gives_prompt_and_cuts(stream, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        f"- {{at: 0, prompt: {PROMPT}}}\n- {{at: '0:01', prompt: a blue square bounces, mode: cut}}\n"
    )
    assert stream("--script", "p.yaml", *BLOCKS, "-o", "a.mp4", "--quiet") == 0
    cuts = [json.loads(line) for line in (tmp_path / "a.mp4.cuts.jsonl").read_text().splitlines()]
    assert cuts == [{"video_frame": 21, "seconds": 1.3125}]
    assert stream("--script", "p.yaml", *BLOCKS, "-o", "a.hls", "--quiet") == 0
    assert (tmp_path / "a.hls" / PLAYLIST).read_text().count("#EXT-X-DISCONTINUITY\n") == 1
    assert stream("--script", "p.yaml", *BLOCKS, "-o", "a.y4m", "--quiet") == 0
    assert (tmp_path / "a.y4m").read_bytes().count(b"FRAME XCUT\n") == 1


def test_ctrl_c_leaves_whole_files_and_a_snapshot(stream, interrupted, model: str, capsys) -> None:
    assert stream(PROMPT, "--forever", "-o", "cut.mp4", "--snapshot", "s.arl2") == 130
    error = capsys.readouterr().err
    assert "arl2 stream: interrupted; cut.mp4 is whole: " in error
    shown = len(read_video(Path("cut.mp4")))
    assert shown in (21, 33, 45, 57)
    assert ARL2Pipeline.from_pretrained(model).resume("s.arl2").video_frames == shown


@pytest.mark.skipif(sys.platform == "win32", reason="hangups are POSIX's")
def test_a_terminal_that_hangs_up_saves_the_stream(stream, model: str, monkeypatch) -> None:
    pixels = VideoBlock.pixels

    def hanging_up(block: VideoBlock, sample: int = 0) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGHUP)
        return pixels(block, sample)

    monkeypatch.setattr(VideoBlock, "pixels", hanging_up)
    assert stream(PROMPT, "--forever", "-o", "a.gif", "--snapshot", "s.arl2", "--quiet") == 130
    assert ARL2Pipeline.from_pretrained(model).resume("s.arl2").video_frames == len(read_video(Path("a.gif")))
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_json_progress_of_an_endless_stream(stream, interrupted, capsys) -> None:
    assert stream(PROMPT, "--forever", "-o", "a.gif", "--json-progress") == 130
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == ["block"] * (len(events) - 1) + ["done"]
    assert events[0] | {"index": 0, "blocks": None, "seconds_left": None, "dropped": 0} == events[0]
    assert events[-1]["interrupted"]
    assert events[-1]["video_frames"] == events[-2]["video_frames"] == len(read_video(Path("a.gif")))


def test_an_endless_folder_does_not_grow(stream, interrupted, tmp_path: Path) -> None:
    assert stream(PROMPT, "--forever", "-o", "live.hls", "--quiet", "--policy", "drop") == 130
    assert "PLAYLIST-TYPE" not in (tmp_path / "live.hls" / PLAYLIST).read_text()  # what is old will leave
    assert stream(PROMPT, "--frames", "9", "-o", "all.hls", "--quiet") == 0
    assert "PLAYLIST-TYPE:EVENT" in (tmp_path / "all.hls" / PLAYLIST).read_text()


def test_standard_output_that_is_read_to_its_end(stream, capfdbinary, tmp_path: Path) -> None:
    assert stream(PROMPT, *BLOCKS, "-o", "-", "--scale", "1") == 0
    out, error = capfdbinary.readouterr()
    (tmp_path / "copy.y4m").write_bytes(out)
    assert read_video(tmp_path / "copy.y4m").shape == (33, 64, 64, 3)
    assert b"33 video frames in" in error


@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX's")
@pytest.mark.parametrize(("length", "code"), [(("--forever",), 0), (("--frames", "600"), 2)])
def test_a_reader_that_goes_away_ends_the_stream_and_loses_nothing(
    stream, model: str, tmp_path: Path, capsys, length: tuple[str, ...], code: int
) -> None:
    os.mkfifo(tmp_path / "pipe")

    def head() -> None:
        with (tmp_path / "pipe").open("rb") as end:
            end.read(100_000)

    reader = threading.Thread(target=head)
    reader.start()
    assert stream(PROMPT, *length, "-o", "pipe", "--snapshot", "s.arl2") == code
    reader.join()
    error = capsys.readouterr().err
    assert "The reader of 'pipe' went away; the stream ends here. The stream is saved after" in error
    assert ARL2Pipeline.from_pretrained(model).resume("s.arl2").index >= 1


@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX's")
def test_a_pipe_that_nobody_reads_and_ctrl_c(stream, model: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("arl2.serving.outputs.raw._PATIENCE", 0.1)
    os.mkfifo(tmp_path / "pipe")
    write = Y4mVideo.write

    def impatient(video: Y4mVideo, frames: np.ndarray) -> None:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        write(video, frames)

    monkeypatch.setattr(Y4mVideo, "write", impatient)
    assert stream(PROMPT, "--forever", "-o", "pipe", "--snapshot", "s.arl2") == 130
    assert "The reader of 'pipe' takes nothing; the stream ends here. The stream is saved" in capsys.readouterr().err
    assert ARL2Pipeline.from_pretrained(model).resume("s.arl2").index >= 1


def test_a_full_disk_is_one_sentence_and_the_stream_is_saved(stream, model: str, monkeypatch, capsys) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    Path("a.y4m").symlink_to(full)
    assert stream(PROMPT, "--forever", "-o", "a.y4m", "--snapshot", "s.arl2") == 2
    error = capsys.readouterr().err
    assert error.startswith("arl2 stream: Writing failed (No space left on device)")
    assert "The stream is saved after" in error
    assert "; video frames 0 to " in error
    assert error.count("\n") == 1
    assert ARL2Pipeline.from_pretrained(model).resume("s.arl2").index >= 1


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize(("words", "hangs_up"), [((), True), (("--json-progress",), False)])
def test_lines_that_nobody_reads_any_more_end_nothing(model: str, tmp_path: Path, words, hangs_up: bool) -> None:
    length = ("--forever",) if hangs_up else BLOCKS
    command = [sys.executable, "-m", "arl2.cli.main", "stream", "--model", model, PROMPT, *length, *words]
    # As "2>&1 | head", or as a terminal that went away.
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        [*command, "-o", "a.y4m", "--snapshot", "s.arl2", "--save-every", "1"],
        cwd=tmp_path,
        stdout=writing,
        stderr=writing,
    )
    os.close(writing)
    try:
        if hangs_up:
            while not (tmp_path / "s.arl2").exists() and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGHUP)
        assert process.wait(300) == (130 if hangs_up else 0)
    finally:
        process.kill()
    shown = len(read_video(tmp_path / "a.y4m"))
    assert ARL2Pipeline.from_pretrained(model).resume(tmp_path / "s.arl2").video_frames == shown


def test_preview_without_a_terminal(stream, capsys) -> None:
    assert stream(PROMPT, "--frames", "9", "--preview", "-o", "a.gif") == 0
    assert "arl2 stream: no preview: this is no terminal" in capsys.readouterr().err
    assert stream(PROMPT, "--frames", "9", "--preview") == 2
    assert "Nothing would be shown or kept: no preview: this is no terminal; give --output" in capsys.readouterr().err


def test_preview_in_a_terminal(stream, monkeypatch) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            raise OSError("no descriptor")

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal(shown := io.BytesIO(), encoding="utf-8"))
    assert stream(PROMPT, *BLOCKS, "--preview", "-o", "a.gif") == 0
    sys.stdout.flush()
    text = shown.getvalue().decode()
    assert text.count("\u2580") >= 3 * 1000  # one picture a block
    assert PROMPT in text
    assert text.index("\x1b[?25h") < text.index("wrote a.gif")


def test_second_prompt_of_a_resumed_stream(stream, model: str, tmp_path: Path) -> None:
    assert stream(PROMPT, "--frames", "9", "-o", "a.gif", "--snapshot", "s.arl2", "--quiet") == 0
    words = ("a blue square bounces", "--resume", "s.arl2", "--frames", "12", "-o", "b.gif", "--snapshot", "t.arl2")
    assert stream(*words, "--snapshot-kind", "light", "--quiet") == 0
    assert ARL2Pipeline.from_pretrained(model).resume("t.arl2").prompt == "a blue square bounces"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("", *BLOCKS), "The prompt is empty"),
        (("hello world", *BLOCKS), "which this model cannot draw"),
        (BLOCKS, "Give a prompt, a script with a prompt at 0, or --resume"),
        (("red", *BLOCKS, "-o", "a.webp"), "is kept in memory until it is closed"),
        (("red", *BLOCKS, "-o", "file/a.hls"), "cannot be made"),
        (("red", *BLOCKS, "-o", "full.hls"), "is not empty"),
        (("red", *BLOCKS, "-o", "a.mp4", "--keep-minutes", "3"), "--keep-minutes goes with a folder of segments"),
        (("red", *BLOCKS, "--save-every", "3"), "give --snapshot S.arl2"),
        (("red", *BLOCKS, "--snapshot", "s.pt"), "must end in .arl2"),
        (("red", *BLOCKS, "--snapshot", "file/s.arl2"), "cannot be made"),
        (("red", *BLOCKS, "--window", "2"), "use at least 3"),
        (("red", *BLOCKS, "--script", "none.yaml"), "cannot be read"),
        (("red", *BLOCKS, "--script", "typo.yaml"), "Did you mean 'prompt'"),
        (("red", *BLOCKS, "--script", "words.yaml"), "entry 2: "),
        (("red", *BLOCKS, "--script", "start.yaml"), "got a prompt at 0 and PROMPT"),
        (("--resume", "none.arl2", *BLOCKS, "-o", "a.gif"), "none.arl2"),
        (("--resume", "broken.arl2", *BLOCKS, "-o", "a.gif"), "broken.arl2"),
        (("--resume", "broken.arl2", *BLOCKS), "give --output or --preview"),
        (("--resume", "broken.arl2", *BLOCKS, "-o", "there.gif"), "'there.gif' exists, and"),
        (("--resume", "broken.arl2", *BLOCKS, "-o", "a.gif", "--seed", "3"), "--seed does not go with --resume"),
        (("--resume", "broken.arl2", *BLOCKS, "-o", "a.gif", "--window", "9"), "--window does not go with --resume"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(stream, tmp_path: Path, capsys, words, said: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "there.gif").write_text("")
    (tmp_path / "broken.arl2").write_bytes(b"\x00" * 100)
    (tmp_path / "full.hls").mkdir()
    (tmp_path / "full.hls" / "a").write_text("")
    (tmp_path / "typo.yaml").write_text("- {at: 1, promt: a}")
    (tmp_path / "words.yaml").write_text("- {at: 1, prompt: a red circle}\n- {at: 5, prompt: hello world}")
    (tmp_path / "start.yaml").write_text("- {at: 0, prompt: a red circle}")
    before = sorted(tmp_path.rglob("*"))
    assert stream(*words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("arl2 stream: ")
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Give --forever, --frames or --seconds."),
        (("--frames", "0"), "Option '--frames': got '0'; give a whole number from 1."),
        (("--forever", "--frames", "9"), "--forever and --frames exclude each other; give one of them."),
        (("--seconds", "inf"), "Option '--seconds': got 'inf'; give a number above 0."),
        (("--forever", "--keep-minutes", "0"), "Option '--keep-minutes': got '0'; give a number above 0."),
        (("--forever", "--policy", "wai"), "Option '--policy': got 'wai'. Did you mean 'wait'?"),
        (("--frames", "9", "--snapshot-kin", "light"), "Unknown option '--snapshot-kin'. Did you mean '--snapshot"),
    ],
)
def test_words_that_mean_nothing(stream, words: tuple[str, ...], said: str, capsys) -> None:
    assert stream(PROMPT, *words) == 2
    assert said in capsys.readouterr().err


def test_streams_are_not_written_over_unless_asked(stream, capsys) -> None:
    words = (PROMPT, "--frames", "9", "--quiet", "--snapshot", "s.arl2", "-o")
    assert stream(*words, "a.gif") == 0
    assert stream(*words, "a.gif") == 2
    assert stream(*words, "b.gif") == 2
    assert capsys.readouterr().err.count("s.arl2' is there already; choose another name, or add --overwrite") == 2
    assert stream(*words, "a.gif", "--overwrite") == 0
    assert stream(PROMPT, "--frames", "9", "--quiet", "-o", "a.gif") == 2
    assert "'a.gif' is there already" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_kill_9_leaves_what_plays_and_a_snapshot_that_goes_on(model: str, tmp_path: Path) -> None:
    words = ["--forever", "-o", "a.mp4", "--snapshot", "s.arl2", "--save-every", "2", "--json-progress", "--scale", "1"]
    command = [sys.executable, "-m", "arl2.cli.main", "stream", "--model", model, PROMPT, *words]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("{") and json.loads(line)["index"] == 6:
            break
    process.kill()
    process.wait()
    process.stderr.close()
    assert len(read_video(tmp_path / "a.mp4")) >= 16
    assert (
        main(
            [
                "stream",
                "--model",
                model,
                "--resume",
                str(tmp_path / "s.arl2"),
                "--frames",
                "12",
                "-o",
                str(tmp_path / "b.gif"),
                "--quiet",
            ]
        )
        == 0
    )
