"""``arl2 generate`` from an image or a video, into a pipe, and with the options that name a model's parts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from arl2.cli.main import main
from arl2.pipeline import source
from arl2.pipeline.options import ModelSource
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.video.reading import read_video, video_info
from pipeline.stand_in import SETTINGS, stand_in_pipeline
from support import ROUNDING, relative


def test_a_video_goes_on(generate, tmp_path: Path, capsys) -> None:
    assert generate("red", "--frames", "24", "--output", "first", "--scale", "3", "--quiet") == 0
    assert generate("red", "--extend", "first", "--output", "more", "--latents", "more.safetensors") == 0
    out = capsys.readouterr().out
    assert "continuing after 21 video frames of first (3 at its start do not fill a block and are left out)" in out
    more = read_video(tmp_path / "more")
    assert len(more) == 45
    assert load_file("more.safetensors")["000"].shape[1] == 12
    assert generate("red", "--extend", "first", "--output", "new", "--only-new", "--sheet", "new.png", "--quiet") == 0
    assert np.array_equal(read_video(tmp_path / "new"), more[21:])
    assert generate("red", "blue", "--extend", "first", "--output", "both.gif", "--frames", "33", "--quiet") == 0
    assert generate("red", "--extend", "first", "--output", "short.mp4", "--frames", "21") == 2
    assert "Got 6 known latent frames of 6 in all; ask for more" in capsys.readouterr().err
    assert not (tmp_path / "short.mp4").exists()


@pytest.mark.parametrize("ending", [".mp4", ""])
def test_a_video_of_ours_keeps_its_frames_and_others_are_said_to_lose(
    generate, tmp_path, capsys, caplog, ending
) -> None:
    words = ("--scale", "1", "--quiet")
    assert generate("red", "--frames", "21", "--output", f"a0{ending}", *words) == 0
    first = known = read_video(tmp_path / f"a0{ending}")
    for number in range(1, 5):
        assert (
            generate(
                "red",
                "--extend",
                f"a{number - 1}{ending}",
                "-o",
                f"a{number}{ending}",
                "--frames",
                str(21 + 12 * number),
                *words,
            )
            == 0
        )
        found = read_video(tmp_path / f"a{number}{ending}")
        assert len(found) == 21 + 12 * number
        assert np.array_equal(found[: len(known)], known)
        known = found
    assert np.array_equal(known[:21], first)
    assert "encoded again" not in caplog.text
    assert generate("red", "--extend", f"a0{ending}", "-o", "b.gif", "--frames", "33", *words) == 0
    assert f"The frames of 'a0{ending}' are encoded again in 'b.gif'" in caplog.text


def test_an_image_is_the_start(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    pipe = stand_in_pipeline(settings=replace(SETTINGS, first_block_frames=1))
    pipe.save_pretrained(tmp_path / "model")
    Image.fromarray(np.full((32, 100, 3), 200, dtype=np.uint8)).save(tmp_path / "start.png")
    words = ["generate", "red", "--model", "model", "--image", "start.png", "--frames", "13", "--scale", "1"]
    assert main([*words, "--output", "all", "--latents", "all.safetensors"]) == 0
    assert len(read_video(tmp_path / "all")) == 13
    with torch.no_grad():
        grey = torch.full((1, 3, 1, 64, 64), 200 / 127.5 - 1)
        found = load_file("all.safetensors")["000"][:, :1]
        assert relative(found, pipe.codec.encode(grey)[0]) < ROUNDING[torch.float32]
    assert main([*words, "--output", "new", "--only-new"]) == 0
    assert len(read_video(tmp_path / "new")) == 12
    (tmp_path / "start.png").write_text("no picture")
    assert main([*words, "--output", "no"]) == 2
    assert "'start.png' cannot be read as an image" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--image", "a.png"), "this model's first block has 3"),
        (("--extend", "missing.mp4"), "There is no 'missing.mp4'"),
        (("--extend", "text.mp4"), "cannot be read as a video"),
        (("--extend", "short"), "its first block takes 9; give a longer video"),
        (("--extend", "own.gif", "--output", "own.gif", "--overwrite"), "'own.gif' is what the video starts with"),
        (("--only-new",), "--only-new goes with --image or --extend"),
    ],
)
def test_starts_that_are_none(generate, tmp_path: Path, capsys, words: tuple, said: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "text.mp4").write_text("no video")
    assert generate("red", "--frames", "9", "--output", "own.gif", "--quiet") == 0
    assert generate("red", "--frames", "8", "--output", "short", "--quiet") == 0
    before = sorted(tmp_path.iterdir())
    assert generate("red", "--output", "b.mp4", *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_options_that_exclude_each_other(generate, capsys) -> None:
    assert generate("red", "--image", "a.png", "--extend", "b.mp4") == 2
    assert "--image and --extend exclude each other; give one of them." in capsys.readouterr().err
    assert generate("red", "--quiet", "--json-progress") == 2
    assert "--quiet and --json-progress exclude each other" in capsys.readouterr().err


def test_a_pipe_gets_video_alone(generate, tmp_path: Path, capfdbinary) -> None:
    assert generate("red", "blue", "--frames", "20", "--output", "-", "--scale", "1") == 0
    shown = capfdbinary.readouterr()
    (tmp_path / "a.y4m").write_bytes(shown.out)
    assert read_video(tmp_path / "a.y4m").shape == (20, 64, 130, 3)
    assert video_info(tmp_path / "a.y4m").fps == 16
    said = shown.err.decode()
    assert "20 video frames do not fill whole blocks" in said
    assert "wrote -" in said


def test_options_of_the_models_parts(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[ModelSource] = []

    def opened(model: ModelSource, *_: Any, **__: Any) -> ARL2Pipeline:
        asked.append(model)
        return stand_in_pipeline()

    monkeypatch.setattr(source, "open_pipeline", opened)
    (tmp_path / "base").mkdir()
    for name in ("ar.pt", "c.yaml"):
        (tmp_path / name).write_bytes(b"")
    run = ["generate", "red", "--frames", "9", "--output", "a.gif", "--quiet", "--overwrite"]
    parts = ["--weights", "ar.pt", "--base", "base", "--config", "c.yaml", "--decoder", "tiny", "--dtype", "bfloat16"]
    assert main([*run, *parts, "--hybrid-layers", "0", "2", "--weights-branch", "ema"]) == 0
    assert asked.pop() == ModelSource(
        weights=Path("ar.pt"),
        base=Path("base"),
        config=Path("c.yaml"),
        decoder="tiny",
        hybrid_layers=(0, 2),
        weights_branch="ema",
        dtype="bfloat16",
    )
    for word, dtype in (("bf16", "bfloat16"), ("fp16", "float16"), ("half", "float16"), ("fp32", "float32")):
        assert main([*run, "--model", "causal-forcing", "--dtype", word, "--device", "cpu"]) == 0
        assert asked.pop() == ModelSource(model="causal-forcing", dtype=dtype, device="cpu")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main([*run, "--model", "causal-forcing", "--decoder", "tiny"]) == 2
    assert main([*run, "--model", "causal-forcin"]) == 2
    assert "There is no model 'causal-forcin'. Did you mean 'causal-forcing" in capsys.readouterr().err


def test_a_folder_in_another_precision(generate, model: str, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        words = (
            "--frames",
            "9",
            "--output",
            f"{dtype}.gif",
            "--latents",
            f"{dtype}.safetensors",
            "--quiet",
            "--dtype",
            dtype,
        )
        assert generate("red", *words) == 0
    one, other = (load_file(f"{dtype}.safetensors")["000"].float() for dtype in ("float32", "bfloat16"))
    assert not torch.equal(one, other)
    # Rounding of weights and of every product: close, and not the same.
    assert (one - other).norm() / one.norm() < 0.2
