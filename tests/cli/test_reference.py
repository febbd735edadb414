"""The published code's command line, word for word, in both spellings."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from arl2.cli import loading, reference
from arl2.cli.main import build_parser, main
from arl2.errors import ConfigError
from arl2.pipeline import assemble
from arl2.pipeline.pipeline import ARL2Pipeline
from pipeline.stand_in import stand_in_pipeline


def parsed(*words: str) -> argparse.Namespace:
    return build_parser().parse_args(["generate", *words])


def paths(underscores: bool) -> list[str]:
    words = ["--config-path", "x.yaml", "--checkpoint-path", "y.pt", "--data-path", "p.txt", "--output-folder", "out"]
    words += ["--hybrid-layers", "0", "1", "2", "--num-output-frames", "30", "--use-ema", "--seed", "4"]
    return [word[:2] + word[2:].replace("-", "_") if underscores and word.startswith("--") else word for word in words]


@pytest.mark.parametrize("underscores", [False, True])
def test_every_word_has_its_meaning(underscores: bool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = parsed(*paths(underscores))
    assert reference.is_asked(arguments)
    ours, notes = reference.translated(arguments)
    assert (ours.config, ours.weights, ours.output) == (Path("x.yaml"), Path("y.pt"), Path("out"))
    assert (ours.prompts_file, ours.frames, ours.seed) == (Path("p.txt"), 117, 4)
    assert (ours.hybrid_layers, ours.weights_branch, ours.dtype) == ([0, 1, 2], "ema", "bfloat16")
    assert ours.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert (ours.model, ours.base) == ("causal-forcing", None)
    assert any("30 latent frames are 117 video frames" in note for note in notes)
    assert any("bfloat16" in note for note in notes)
    (tmp_path / "wan_models" / "Wan2.1-T2V-1.3B").mkdir(parents=True)
    ours, _ = reference.translated(arguments)
    assert (ours.model, ours.base) == (None, Path("wan_models/Wan2.1-T2V-1.3B"))


def test_ours_win_where_they_are_given() -> None:
    words = ("--config-path", "x.yaml", "--checkpoint-path", "y.pt", "--data-path", "p.txt")
    ours, notes = reference.translated(parsed(*words, "--base", "b", "--dtype", "float32", "--device", "cpu"))
    assert (ours.base, ours.model, ours.dtype, ours.device) == (Path("b"), None, "float32", "cpu")
    assert not any("bfloat16" in note for note in notes)
    # As the published code: 21 latent frames unless somebody says, and plain weights without --use-ema.
    assert (ours.frames, ours.weights_branch) == (81, "plain")
    ours, _ = reference.translated(parsed(*words, "--frames", "9", "--weights-branch", "auto", "--model", "m"))
    assert (ours.frames, ours.weights_branch, ours.model, ours.base) == (9, "auto", "m", None)
    words = ("--data_path", "p", "--extended_prompt_path", "long.txt", "--save_with_index")
    ours, notes = reference.translated(parsed(*words))
    assert ours.prompts_file == Path("long.txt")
    assert any("no meaning here" in note for note in notes)


def test_without_a_published_model_the_words_change_nothing_else() -> None:
    assert not reference.is_asked(parsed("red", "--hybrid-layers", "0"))
    ours, notes = reference.translated(parsed("red", "--num-output-frames", "3"))
    assert (ours.frames, ours.model, ours.dtype, ours.device, ours.weights_branch) == (9, None, None, None, None)
    assert notes == ["3 latent frames are 9 video frames."]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--i2v",), "need --data-path"),
        (("--data-path", "p.txt", "--i2v"), "the data path is a folder of images"),
        (("--data-path", "."), "is a folder; add --i2v"),
        (("--data-path", ".", "--i2v", "--extended-prompt-path", "e.txt"), "not with --i2v"),
        (
            ("--data-path", "p.txt", "--num-output-frames", "3", "--frames", "9"),
            "Both --num-output-frames and --frames",
        ),
        (("--checkpoint-path", "a.pt", "--weights", "b.pt"), "Both --checkpoint-path and --weights"),
        (("--use-ema", "--weights-branch", "plain"), "Both --use-ema and --weights-branch plain"),
        (("red", "--num-samples", "2"), "--num-samples goes with --data-path"),
    ],
)
def test_words_that_exclude_each_other(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        reference.translated(parsed(*words))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Published weights are stood in for; what they were asked for is kept."""
    kept: list[dict[str, Any]] = []

    def assembled(model: str, **parts: Any) -> ARL2Pipeline:
        kept.append({"model": model, **parts})
        pipe = stand_in_pipeline()
        pipe.settings = pipe.settings.__class__(
            **{**pipe.settings.to_mapping(), "first_block_frames": 1, "steps": (1000,)}
        )
        return pipe

    monkeypatch.setattr(assemble, "assemble_pipeline", assembled)
    monkeypatch.setattr(loading, "check_memory", lambda *_: None)  # the files of this test are empty
    monkeypatch.chdir(tmp_path)
    return kept


def test_text_to_video(asked: list[dict[str, Any]], tmp_path: Path, capsys) -> None:
    (tmp_path / "p.txt").write_text("a red circle\na blue square\n")
    words = ["generate", "--config_path", "x.yaml", "--checkpoint_path", "y.pt", "--data_path", "p.txt"]
    words += [
        "--output_folder",
        "videos",
        "--num_output_frames",
        "4",
        "--use_ema",
        "--num_samples",
        "2",
        "--device",
        "cpu",
    ]
    assert main(words) == 0
    (parts,) = asked
    assert parts["weights"] == Path("y.pt")
    assert parts["torch_dtype"] is torch.bfloat16
    out = capsys.readouterr().out
    assert out.count("4 latent frames are 13 video frames") == 1
    manifests = [json.loads(path.read_text()) for path in sorted((tmp_path / "videos").glob("*.json"))]
    assert [(one["prompt"], one["seed"]) for one in manifests] == [
        ("a red circle", 0),
        ("a red circle", 1),
        ("a blue square", 2),
        ("a blue square", 3),
    ]
    assert {one["frames"] for one in manifests} == {13}
    assert len({one["latents_sha256"] for one in manifests}) == 4


def test_image_to_video(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "data" / "1-1").mkdir(parents=True)
    Image.new("RGB", (80, 64), "red").save(tmp_path / "data" / "1-1" / "a.png")
    listed = [{"file_name": "a.png", "caption": "a red circle"}]
    (tmp_path / "data" / "target_crop_info_1-1.json").write_text(json.dumps(listed))
    words = ["generate", "--config-path", "x.yaml", "--data-path", "data", "--i2v", "--output-folder", "out"]
    words += ["--num-output-frames", "4"]
    assert main([*words, "--device", "cpu", "--quiet"]) == 0
    assert [parts["config"] for parts in asked] == [Path("x.yaml")]
    (manifest,) = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")]
    assert manifest["frames"] == 13
    assert len(manifest["settings"]["image_sha256"]) == 64
