"""The published code's command line, word for word, in both spellings."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from arl2.checkpoints.export import export_checkpoint
from arl2.cli.app import parse
from arl2.cli.generate import Generate
from arl2.cli.main import main
from arl2.cli.published import Translated, translated
from arl2.errors import ConfigError
from arl2.pipeline import source
from arl2.pipeline.options import ModelSource
from arl2.pipeline.pipeline import ARL2Pipeline
from pipeline.stand_in import stand_in_pipeline
from support import tiny_model


def parsed(*words: str) -> Generate:
    command = parse(["generate", *words])
    assert isinstance(command, Generate)
    return command


def in_our_words(*words: str) -> Translated:
    one = parsed(*words)
    return translated(one.published, one.source, one.sampling, one.prompts_file, one.output)


def paths(underscores: bool) -> list[str]:
    words = ["--config-path", "x.yaml", "--checkpoint-path", "y.pt", "--data-path", "p.txt", "--output-folder", "out"]
    words += ["--hybrid-layers", "0", "1", "2", "--num-output-frames", "30", "--use-ema", "--seed", "4"]
    return [word[:2] + word[2:].replace("-", "_") if underscores and word.startswith("--") else word for word in words]


@pytest.mark.parametrize("underscores", [False, True])
def test_every_word_has_its_meaning(underscores: bool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parsed(*paths(underscores)).published.given
    ours = in_our_words(*paths(underscores))
    assert (ours.source.config, ours.source.weights, ours.output) == (Path("x.yaml"), Path("y.pt"), Path("out"))
    assert (ours.prompts_file, ours.sampling.num_frames, ours.sampling.seed) == (Path("p.txt"), 117, 4)
    assert (ours.source.hybrid_layers, ours.source.weights_branch, ours.source.dtype) == ((0, 1, 2), "ema", "bfloat16")
    assert ours.source.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert (ours.source.model, ours.source.base) == ("causal-forcing", None)
    assert any("30 latent frames are 117 video frames" in note for note in ours.notes)
    assert any("bfloat16" in note for note in ours.notes)
    (tmp_path / "wan_models" / "Wan2.1-T2V-1.3B").mkdir(parents=True)
    ours = in_our_words(*paths(underscores))
    assert (ours.source.model, ours.source.base) == (None, Path("wan_models/Wan2.1-T2V-1.3B"))


def test_ours_win_where_they_are_given() -> None:
    words = ("--config-path", "x.yaml", "--checkpoint-path", "y.pt", "--data-path", "p.txt")
    ours = in_our_words(*words, "--base", "b", "--dtype", "float32", "--device", "cpu")
    assert ours.source == ModelSource(
        base=Path("b"),
        config=Path("x.yaml"),
        weights=Path("y.pt"),
        dtype="float32",
        device="cpu",
        # As the published code: plain weights without --use-ema, and 21 latent frames unless somebody says.
        weights_branch="plain",
    )
    assert ours.sampling.num_frames == 81
    assert not any("bfloat16" in note for note in ours.notes)
    ours = in_our_words(*words, "--frames", "9", "--weights-branch", "auto", "--model", "m")
    assert (ours.sampling.num_frames, ours.source.weights_branch) == (9, "auto")
    assert (ours.source.model, ours.source.base) == ("m", None)
    ours = in_our_words("--data_path", "p", "--extended_prompt_path", "long.txt")
    assert ours.prompts_file == Path("long.txt")


def test_without_a_published_model_the_words_change_nothing_else() -> None:
    assert not parsed("red", "--hybrid-layers", "0").published.given
    ours = in_our_words("red", "--num-output-frames", "3")
    assert ours.source == ModelSource()
    assert ours.sampling.num_frames == 9
    assert ours.notes == ("3 latent frames are 9 video frames.",)


@pytest.mark.parametrize(
    "words",
    [
        ("--save_with_index",),
        ("--fname_len", "100"),
        ("--lora_rank", "128"),
        ("--ffn_lora_all_layers",),
        ("--report_timing",),
    ],
)
def test_words_without_effect_are_accepted_and_named(words: tuple[str, ...]) -> None:
    (note,) = in_our_words("red", *words).notes
    assert note.startswith(f"{words[0].replace('_', '-')} has no effect: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--i2v",), "need --data-path"),
        (("--data-path", "p.txt", "--i2v"), "the data path is a folder of images"),
        (("--data-path", "."), "is a folder; add --i2v"),
        (("--data-path", ".", "--i2v", "--extended-prompt-path", "e.txt"), "not with --i2v"),
        (
            ("--data-path", "p.txt", "--num-output-frames", "3", "--frames", "9"),
            "both --num-output-frames and --frames",
        ),
        (("--checkpoint-path", "a.pt", "--weights", "b.pt"), "both --checkpoint-path and --weights"),
        (("--use-ema", "--weights-branch", "plain"), "both --use-ema and --weights-branch plain"),
        (("red", "--num-samples", "2"), "--num-samples goes with --data-path"),
        (("red", "--metrics_dir", "m"), "--metrics-dir is not supported"),
    ],
)
def test_words_that_exclude_each_other(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        in_our_words(*words)


def test_the_alpha_of_a_published_file(tmp_path: Path, capsys) -> None:
    words = ("--config_path", "x.yaml", "--checkpoint_path", "y.pt", "--data_path", "p.txt", "--lora_alpha", "16")
    assert in_our_words(*words).source.lora_alpha == 16.0
    assert main(["generate", "a red circle", "--lora_alpha", "32", "-o", str(tmp_path / "x.mp4")]) == 2
    assert "is a saved pipeline, which knows its LoRA alpha" in capsys.readouterr().err
    assert main(["generate", "a red circle", "--lora_alpha", "nan"]) == 2


def test_inspect_says_which_alpha_is_assumed(tmp_path: Path, capsys) -> None:
    export_checkpoint(tiny_model("HS"), tmp_path / "model.pt")
    words = ["inspect", str(tmp_path / "model.pt"), "--heads", "2"]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "32, the published default: the file does not say" in " ".join(printed.out.split())
    assert "alpha" not in printed.err  # once
    assert main([*words, "--lora-alpha", "8"]) == 0
    assert "LoRA alpha 8 " in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["alpha_assumed"], described["config"]["low_rank_alpha"]) == (True, 32.0)
    export_checkpoint(tiny_model("S"), tmp_path / "softmax.pt")
    assert main(["inspect", str(tmp_path / "softmax.pt"), "--heads", "2"]) == 0
    assert "LoRA alpha" not in capsys.readouterr().out


@pytest.mark.parametrize("word", ["nan", "inf", "-1", "1001", "x"])
def test_timesteps_and_guidance_that_are_no_numbers(word: str, capsys) -> None:
    assert main(["generate", "a red circle", "--context-noise", word]) == 2
    assert f"got '{word}'; give a timestep from 0 to 1000" in capsys.readouterr().err
    if word != "1001":
        assert main(["generate", "a red circle", "--guidance-scale", word]) == 2
        assert f"got '{word}'; give a number above 0" in capsys.readouterr().err
    assert parsed("red", "--context-noise", "0").sampling.context_noise == 0.0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ModelSource]:
    """Published weights are stood in for; what they were asked for is kept."""
    kept: list[ModelSource] = []

    def opened(model: ModelSource, *_: Any, **__: Any) -> ARL2Pipeline:
        kept.append(model)
        pipe = stand_in_pipeline()
        pipe.settings = pipe.settings.__class__(
            **{**pipe.settings.to_mapping(), "first_block_frames": 1, "steps": (1000,)}
        )
        return pipe

    monkeypatch.setattr(source, "open_pipeline", opened)
    monkeypatch.chdir(tmp_path)
    for name in ("x.yaml", "y.pt"):
        (tmp_path / name).write_bytes(b"")
    return kept


def test_text_to_video(asked: list[ModelSource], tmp_path: Path, capsys) -> None:
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
    (model,) = asked
    assert (model.weights, model.dtype) == (Path("y.pt"), "bfloat16")
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


def test_image_to_video(asked: list[ModelSource], tmp_path: Path) -> None:
    (tmp_path / "data" / "1-1").mkdir(parents=True)
    Image.new("RGB", (80, 64), "red").save(tmp_path / "data" / "1-1" / "a.png")
    listed = [{"file_name": "a.png", "caption": "a red circle"}]
    (tmp_path / "data" / "target_crop_info_1-1.json").write_text(json.dumps(listed))
    words = ["generate", "--config-path", "x.yaml", "--data-path", "data", "--i2v", "--output-folder", "out"]
    words += ["--num-output-frames", "4"]
    assert main([*words, "--device", "cpu", "--quiet"]) == 0
    assert [model.config for model in asked] == [Path("x.yaml")]
    (manifest,) = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")]
    assert manifest["frames"] == 13
    assert len(manifest["settings"]["image_sha256"]) == 64
