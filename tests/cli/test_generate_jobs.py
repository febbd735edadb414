"""``arl2 generate --prompts-file``: killed, interrupted or out of room, the same words go on to the same videos."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arl2.cli.main import main
from arl2.cli.progress import BlockReport, LiveLine
from arl2.pipeline.pipeline import VideoBlock
from arl2.video.reading import iterate_video, read_video

PROMPTS = [
    {"prompt": "a red circle moves right", "frames": 9, "seed": 3},
    {"prompt": "a blue square bounces", "frames": 129},
    {"prompt": "a green triangle falls", "frames": 9, "file": "last.gif"},
]


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in PROMPTS))
    return path


def words(model: str, prompts: Path, folder: str, *more: str) -> list[str]:
    start = ["generate", "--model", model, "--prompts-file", str(prompts), "--output", folder]
    return [*start, "--scale", "1", "--threads", "1", *more]


def hashes(folder: Path) -> dict[str, str]:
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    assert all(one["complete"] for one in found)
    return {one["file"]: one["latents_sha256"] for one in found}


# What no handler can see coming, in the middle of the second video.
KILLED = """
import os, signal, sys
from arl2.cli.main import main
from arl2.cli.progress import BlockReport, LiveLine
from arl2.pipeline.pipeline import VideoBlock
pixels = VideoBlock.pixels
def killing(block, sample=0):
    if block.index == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return pixels(block, sample)
VideoBlock.pixels = killing
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
def test_a_killed_run_goes_on_to_the_same_videos(model: str, prompts: Path, tmp_path: Path, capsys) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, *words(model, prompts, "out", "--quiet")], check=False)
    assert killed.returncode == -signal.SIGKILL
    first, second = sorted(path for path in (tmp_path / "out").iterdir() if path.suffix == ".mp4")
    assert list(hashes(tmp_path / "out")) == [first.name]
    before = first.stat().st_mtime_ns
    # What the killed run left of the second can be played: all but what the encoder held.
    assert 16 <= sum(1 for _ in iterate_video(second)) < 129

    assert main(words(model, prompts, "out")) == 0
    assert "3 videos: 1 finished before, 2 to make" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == before
    assert main(words(model, prompts, "undisturbed", "--quiet")) == 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "undisturbed")
    assert len(hashes(tmp_path / "out")) == 3
    assert len(read_video(second)) == 129
    for name in hashes(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_ctrl_c_finishes_the_file_but_not_the_list(
    model: str, prompts: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    pixels = VideoBlock.pixels

    def interrupting(block: VideoBlock, sample: int = 0) -> np.ndarray:
        if block.index == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return pixels(block, sample)

    monkeypatch.setattr(VideoBlock, "pixels", interrupting)
    assert main(words(model, prompts, "out", "--json-progress")) == 130
    shown = capsys.readouterr()
    assert shown.out == ""
    *lines, last = shown.err.splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == ["block", "finished", "block", "block", "done"]
    assert events[-1]["interrupted"] is True
    assert events[-1]["video_frames"] == 9 + 21
    (partial,) = (tmp_path / "out").glob("0001-*")
    assert last.startswith("arl2 generate: interrupted; 1 videos were finished in 'out'; the part of ")
    assert partial.name in last
    assert len(read_video(partial)) == 21
    assert len(hashes(tmp_path / "out")) == 1
    assert not (tmp_path / "out" / "last.gif").exists()


def test_events_for_programs(model: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("a red circle\n")
    assert main(words(model, Path("list.txt"), "out", "--json-progress", "--frames", "21")) == 0
    assert main(words(model, Path("list.txt"), "out", "--json-progress", "--frames", "21")) == 0
    assert main(["generate", "red", "--model", model, "--output", "a.mp4", "--frames", "21", "--json-progress"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    events = [json.loads(line) for line in shown.err.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds == ["block", "block", "finished", "done", "skipped", "done", "block", "block", "done"]
    for event in (events[1], events[7]):
        assert (event["index"], event["blocks"], event["video_frames"]) == (1, 2, 21)
        assert event["video_seconds"] == pytest.approx(21 / 16, abs=1e-3)
        assert event["fps"] > 0
        assert event["memory_bytes"] > 1e8
        assert event["seconds_left"] == 0
    assert events[6]["seconds_left"] > 0
    assert events[-1]["files"] == ["a.mp4"]
    assert events[-1]["video_frames"] == 21
    assert events[5]["files"] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_sentence(model: str, prompts: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "last.gif").symlink_to("/dev/full")
    lines = prompts.read_text().splitlines()
    prompts.write_text(f"{lines[0]}\n{lines[2]}\n")
    assert main(words(model, prompts, "out", "--quiet")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"arl2 generate: '{prompts}', line 2: Writing failed (No space left on device); the part ")
    assert "'out/last.gif'" in error
    assert error.count("\n") == 1
    assert len(hashes(tmp_path / "out")) == 1
    (tmp_path / "single.mp4").symlink_to("/dev/full")
    assert main(["generate", "red", "--model", model, "--frames", "9", "--output", "single.mp4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("arl2 generate: Writing failed (No space left on device); the part ")
    assert "'single.mp4'" in error


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--output", "a.mp4"), "give --output a name without extension"),
        (("--output", "-"), "give --output a name without extension"),
        (("--sheet", "a.png"), "--sheet does not go with --prompts-file"),
        (("--latents", "a.safetensors"), "--latents does not go with --prompts-file"),
        (("--output", "file"), "'file' is a file"),
        (("--output", "file/out"), "cannot be made"),
        (("--prompts-file", "missing.txt"), "'missing.txt' cannot be read"),
        (("--prompts-file", "bad.txt"), "'bad.txt', line 2: The prompt 'hello world' asks for 'hello' and 'world'"),
        (("--prompts-file", "folder"), "holds no images with prompts"),
    ],
)
def test_mistakes_are_one_sentence(model: str, prompts: Path, tmp_path: Path, capsys, more: tuple, said: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.txt").write_text("red\nhello world\n")
    assert main([*words(model, prompts, "out"), *more]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not any(path.suffix in (".mp4", ".gif") for path in tmp_path.rglob("*"))


def test_no_output_is_named(model: str, prompts: Path, capsys) -> None:
    assert main(["generate", "--model", model, "--prompts-file", str(prompts)]) == 2
    assert "give --output a name" in capsys.readouterr().err
    assert main(["generate", "--model", model]) == 2
    assert "Give a prompt, or several, or --prompts-file" in capsys.readouterr().err
    assert main([*words(model, prompts, "out"), "red"]) == 2
    assert "PROMPT does not go with --prompts-file" in capsys.readouterr().err


def test_images_of_a_list_need_a_model_that_takes_them(model: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "a.txt").write_text("a red circle\n")
    assert main(words(model, Path("pictures"), "out")) == 2
    assert "a.txt': An image is one latent frame, but this model's first block has 3" in capsys.readouterr().err


def _all_of(terminal: int) -> bytes:
    """What was written to a terminal whose other end is closed: it comes in pieces, and ends in an error."""
    pieces = b""
    with contextlib.suppress(OSError):
        while piece := os.read(terminal, 100_000):
            pieces += piece
    os.close(terminal)
    return pieces


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of this kind are POSIX's")
def test_a_terminal_shows_a_live_line(model: str, prompts: Path, monkeypatch, capsys) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "160")
        progress = LiveLine(quiet=False)
        with progress:
            report = {"blocks": 7, "file": Path("a.mp4"), "video_frames": 33, "video_seconds": 2.06, "fps": 140.0}
            progress.block(BlockReport(index=2, video=1, videos=4, share=0.3, **report))
    shown = _all_of(ours).decode()
    assert "video 2 of 4, block 3 of 7" in shown
    assert "2.1 s of video  140 video frames/s" in shown
    assert " MB" in shown
    assert "left" in shown
