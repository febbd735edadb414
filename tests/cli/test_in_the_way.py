"""What stood in a user's way: words of the command line that are understood, or refused so that the next try works."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from arl2.cli import app
from arl2.cli.environment import Env, environment
from arl2.cli.main import main
from arl2.cli.train import Train
from arl2.errors import ConfigError
from arl2.pipeline.devices import checked_device


def command(*words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "arl2.cli.main", *words], capture_output=True, text=True, **how)


def test_a_device_that_is_not_there_is_answered_with_those_that_are() -> None:
    for name in ("cuba", "cuda:77", "tpu"):
        with pytest.raises(ConfigError, match=rf"'{name}' cannot be used here; this machine has cpu"):
            checked_device(name)


def test_settings_may_follow_an_option() -> None:
    words = ("train", "codec", "run", "loop.seed=1", "--max-minutes", "1", "loop.steps=2", "--dry-run", "fps=8")
    made = app.parse(words)
    assert isinstance(made, Train)
    assert made.overrides == ("loop.seed=1", "loop.steps=2", "fps=8")


def test_a_bug_report_has_what_it_needs() -> None:
    found = environment()
    names = {
        "arl2",
        "commit",
        "python",
        "torch",
        "processor",
        "threads",
        "CUDA of torch",
        "devices",
        "FFmpeg",
        "memory",
    }
    assert names <= set(found)
    assert "libavcodec" in found["FFmpeg"]
    json.dumps(found)


def test_interrupted_while_options_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "parse", interrupt)
    assert main(["generate", "red"]) == 130
    assert capsys.readouterr().err == "arl2 generate: interrupted\n"


def test_a_reader_that_goes_away_ends_nothing_with_a_traceback() -> None:
    words = [sys.executable, "-m", "arl2.cli.main", "shapes", "sample", "--count", "20000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline()
        running.stdout.close()
        assert running.stderr is not None
        assert running.stderr.read() == ""
    assert running.returncode == 0


def test_a_name_of_an_output_in_another_alphabet(tmp_path: Path) -> None:
    here = {"LANG": "C", "LC_ALL": "C", "PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    made = command("shapes", "sample", "--count", "1", "--sheet", "é.png", cwd=tmp_path, env=here)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "é.png").is_file()


def test_another_size_is_warned_about_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "a red ball", "--model", "shapes", "--frames", "1", "--steps", "1"]
    logging.root.handlers, kept = [], logging.root.handlers  # a command line begins without any
    try:
        assert main([*words, "--height", "128", "--width", "128", "-o", str(tmp_path / "a.mp4")]) == 0
    finally:
        logging.root.handlers = kept
    told = capsys.readouterr().err
    assert told.count("arl2: warning: This model makes videos of 64 x 64 pixels; at 128 x 128") == 1
    assert told.count("is a single sample") == 1
    assert "arl2.streams" not in told


def test_notes_follow_the_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("mine")
    (tmp_path / "prompts.txt").write_text("red\n")
    words = ["--data-path", str(tmp_path / "prompts.txt"), "--output-folder", str(tmp_path / "out")]
    assert main(["generate", *words, "--num-output-frames", "3", "--use-ema"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_settings_name_and_that_is_missing_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = Path(__file__).resolve().parents[2] / "recipes"
    monkeypatch.chdir(tmp_path)
    assert main(["train", "teacher", "runs/mine", "--settings", str(recipes / "shapes-teacher-blocks.json")]) == 2
    said = capsys.readouterr().err
    assert "There is no folder 'runs/codec-stage1/export'" in said
    assert said.count("\n") == 1


def test_too_little_memory_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError()):
        monkeypatch.setattr(Env, "run", lambda self, error=error: (_ for _ in ()).throw(error))
        assert main(["env"]) == 2
        assert capsys.readouterr().err.startswith("arl2 env: this took more memory than there is")
