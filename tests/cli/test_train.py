"""``arl2 train``: the words of the command reach the run, and its end is said."""

import json
from pathlib import Path

import pytest

from arl2.cli.main import main

TINY = ["model.width=8", "model.deep_width=8", "clips=2", "evaluation_clips=1", "evaluation_video_frames=9", "crop=16"]


def test_a_codec_run_of_two_steps(tmp_path: Path, capsys) -> None:
    (tmp_path / "settings.toml").write_text("[loop]\nsteps = 2\nevaluate_every = 2\n")
    words = ["--settings", str(tmp_path / "settings.toml"), "--threads", "1", "--max-minutes", "5"]
    assert main(["train", "codec", *words, str(tmp_path / "run"), *TINY]) == 0
    assert "finished after 2 steps" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"]["width"] == 8
    assert config["loop"]["max_minutes"] == 5
    # Done is done: the same words find nothing to do; other settings are refused unless accepted.
    assert main(["train", "codec", str(tmp_path / "run")]) == 0
    assert main(["train", "codec", str(tmp_path / "run"), "clips=3"]) == 2
    assert "clips: 2 -> 3" in capsys.readouterr().err
    assert main(["train", "codec", str(tmp_path / "run"), "clips=3", "--accept-changes"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("codec", "run"), "give steps or max_minutes"),
        (("codec", "run", "loop.steps=1", "clipps=3"), "Did you mean 'clips'?"),
        (("codec", "run", "clips"), "name=value"),
        (("codec", "run", "--settings", "nothing.toml"), "cannot be read"),
        (("teacher", "run", "loop.steps=1", "codec=nothing", "lenths=[3]"), "Did you mean 'lengths'?"),
    ],
)
def test_bad_input(words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_dry_run_shows_every_setting_and_leaves_nothing(tmp_path: Path, capsys) -> None:
    assert main(["train", "codec", str(tmp_path / "run"), "loop.steps=1", "--max-minutes", "2", "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["loop"]["steps"], shown["loop"]["max_minutes"]) == (1, 2)
    assert {"model", "crop", "clips"} < shown.keys()
    assert not (tmp_path / "run").exists()


def test_a_part_must_be_named(capsys) -> None:
    assert main(["train"]) == 2
    assert "PART is missing" in capsys.readouterr().err
    assert main(["train", "codc", "run"]) == 2
    assert "There is no training task named 'codc'. Did you mean 'codec'?" in capsys.readouterr().err
