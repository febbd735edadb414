"""A named pipe, a device or a folder where a command takes a file is refused at once, in one sentence."""

import os
import threading
from pathlib import Path

import pytest

from arl2.cli.main import main
from pipeline.stand_in import stand_in_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX's")

GENERATE = ("generate", "a red circle", "--model", "MODEL", "-o", "out.mp4")
COMMANDS = [
    ("inspect", "PIPE.pt"),
    ("inspect", "PIPE.safetensors"),
    ("inspect", "FOLDER"),
    (*GENERATE, "--extend", "PIPE.mp4"),
    (*GENERATE, "--extend", "PNGS"),
    ("generate", "--prompts-file", "PIPE.jsonl", "--model", "MODEL", "-o", "out"),
    ("generate", "a red circle", "--weights", "PIPE.pt", "--base", "MODEL", "--config", "PIPE.yaml", "-o", "out.mp4"),
    ("stream", "a red circle", "--model", "MODEL", "-o", "out.mp4", "--frames", "21", "--script", "PIPE.yaml"),
    ("stream", "--resume", "PIPE.arl2", "--model", "MODEL", "-o", "out.mp4", "--frames", "21"),
    ("train", "teacher", "run", "--settings", "PIPE.json"),
    ("train", "teacher", "run", "--settings", "PIPE.toml"),
    ("convert", "MODEL", "-o", "out", "--fraction", "0.5", "--ranking", "PIPE.json"),
    ("shapes", "score", "SCORED"),
    ("eval", "--suite", "video", "SCORED"),
    ("selfcheck", "--goldens", "GOLDENS"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, and pipes under every name that the commands above have."""
    folder = tmp_path_factory.mktemp("pipes")
    stand_in_folder(folder / "MODEL")
    for inside in ("FOLDER", "PNGS", "SCORED", "GOLDENS"):
        (folder / inside).mkdir()
    os.mkfifo(folder / "FOLDER" / "model.safetensors")
    for number in range(9):
        os.mkfifo(folder / "PNGS" / f"{number:05d}.png")
    (folder / "SCORED" / "manifest.jsonl").write_text('{"file": "a.mp4", "prompt": "a red circle"}\n')
    os.mkfifo(folder / "SCORED" / "a.mp4")
    os.mkfifo(folder / "GOLDENS" / "rollout_a.safetensors")
    (folder / "GOLDENS" / "checkpoint_a.pt").write_bytes(b"")
    for word in sorted({word for words in COMMANDS for word in words if word.startswith("PIPE")}):
        os.mkfifo(folder / word)
    return folder


@pytest.mark.parametrize("words", COMMANDS, ids=[" ".join(words[:1] + words[-2:]) for words in COMMANDS])
def test_pipes_are_not_waited_for(
    place: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    # What waited for a pipe would go on when somebody writes: then it took too long.
    rescue = threading.Timer(150, lambda: [os.close(os.open(pipe, os.O_RDWR)) for pipe in place.rglob("PIPE*")])
    rescue.daemon = True
    rescue.start()
    assert main(words) == 2
    assert rescue.is_alive()
    rescue.cancel()
    said = capsys.readouterr().err.strip().splitlines()
    assert "pipe" in said[-1]
