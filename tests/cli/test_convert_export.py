"""``arl2 convert`` and ``arl2 export``: what they write loads back and gives the same video."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arl2.attention.state_form import StateForm
from arl2.cli.main import main
from arl2.files.records import record_from_mapping
from arl2.pipeline.assemble import UntrainedConversionWarning
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.training.conversion.distill import DistillConfig
from arl2.training.conversion.students import load_teacher, make_student, with_window
from arl2.training.engine.config import with_overrides
from pipeline.stand_in import stand_in_pipeline
from support import relative

PROMPT = "a red circle moves right on navy"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A softmax model of four layers and a hybrid whose every parameter is random, low-rank changes included."""
    folder = tmp_path_factory.mktemp("models")
    stand_in_pipeline("SSSS").save_pretrained(folder / "softmax")
    stand_in_pipeline("HS").save_pretrained(folder / "hybrid")
    return folder


def latents_of(model: Path | str, **parts: Path) -> torch.Tensor:
    pipe = ARL2Pipeline.from_pretrained(model, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe([PROMPT], num_frames=33, seed=3, output_type="latent").frames


@pytest.mark.filterwarnings("ignore::arl2.pipeline.assemble.UntrainedConversionWarning")
def test_a_conversion_keeps_every_weight_and_says_what_is_new(models, tmp_path, capsys) -> None:
    folder = tmp_path / "converted"
    assert main(["convert", str(models / "softmax"), "--layers", "0-1,3", "--keep", "1", "-o", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "SSSS -> HSSH" in said
    assert "2 of 4 hybrid" in said
    before = ARL2Pipeline.from_pretrained(models / "softmax").transformer.state_dict()
    with pytest.warns(UntrainedConversionWarning, match=r"Layers \[0, 3\] are hybrid and untrained"):
        after = ARL2Pipeline.from_pretrained(folder)
    assert after.transformer.config.layer_plan == "HSSH"
    tensors = after.transformer.state_dict()
    for name, tensor in before.items():
        home = name if name in tensors else name.replace(".up.", ".up.linear.").replace(".down.", ".down.linear.")
        assert torch.equal(tensors[home], tensor)
    new = sum(x.numel() for x in tensors.values()) - sum(x.numel() for x in before.values())
    assert f"{new:,}" in said
    # A first block has no past: it is the same.
    torch.testing.assert_close(latents_of(folder)[:, :, :3], latents_of(models / "softmax")[:, :, :3])
    for part in ("codec", "text"):
        for file in (models / "softmax" / part).rglob("*"):
            copied = folder / part / file.relative_to(models / "softmax" / part)
            assert file.is_dir() or copied.read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("words", "plan"),
    [
        ((), "WWWW"),
        (("--keep", "1,3"), "WSWS"),
        (("--fraction", "0.75"), "HHHS"),
        (("--fraction", "0.5", "--keep", "0"), "SHHS"),
        (("--fraction", "0.5", "--ranking", "ranking.json"), "SHSH"),
        (("--plan", "SHHS", "--state-rank", "3", "--ffn-rank", "0", "--alpha", "5"), "SHHS"),
    ],
)
def test_ways_to_choose_layers(models, tmp_path, monkeypatch, words, plan) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ranking.json").write_text(json.dumps({"ranking": [3, 1, 0, 2]}))
    assert main(["convert", str(models / "softmax"), *words, "-o", "out"]) == 0
    config = json.loads(Path("out/transformer/config.json").read_text())
    assert config["layer_plan"] == plan
    assert (config["state_rank"], config["ffn_rank"]) == ((3, 0) if "--alpha" in words else (16, 16))
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("words", "mixing"),
    [((), "log-sum-exp"), (("--mixing", "interpolated"), "interpolated"), (("--plan", "WWHH"), "additive")],
)
def test_how_windowed_hybrids_mix(models, tmp_path, words, mixing) -> None:
    assert main(["convert", str(models / "softmax"), *words, "-o", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out/transformer/config.json").read_text())
    assert StateForm.of_config(config).mixing == mixing


def test_windowed_hybrids_by_default_have_a_window(models, tmp_path, capsys) -> None:
    """A model that attends to its whole past would keep all of it; with a window its memory ends growing."""
    pipe = stand_in_pipeline("SSSS")
    pipe.settings = replace(pipe.settings, window=None)
    pipe.transformer = with_window(pipe.transformer, None)
    pipe.save_pretrained(tmp_path / "whole")
    out = str(tmp_path / "out")
    assert main(["convert", str(tmp_path / "whole"), "-o", out]) == 2
    assert "memory would grow with the video" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "whole"), "--window", "2", "-o", out]) == 2
    assert "A window of 2 holds no block of 3 latent frames; give 3 or more." in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "whole"), "--window", "6", "--state-horizon", "12", "-o", out]) == 0
    said = " ".join(capsys.readouterr().out.split())
    both = "plan=WWWW state_form.mixing=log-sum-exp state_horizon=12"
    assert f"arl2 train align {both}" in said
    assert f"arl2 train distill {both} student_window=6" in said
    config = json.loads((tmp_path / "out/transformer/config.json").read_text())
    assert config["window"] == json.loads((tmp_path / "out/generation.json").read_text())["window"] == 6
    assert main(["convert", str(tmp_path / "whole"), "--layers", "0", "-o", str(tmp_path / "chosen")]) == 0
    assert json.loads((tmp_path / "chosen/generation.json").read_text())["window"] is None


def test_the_settings_it_names_make_the_same_student(models, tmp_path, capsys) -> None:
    ranks = ("--state-rank", "3", "--ffn-rank", "5", "--alpha", "4", "--ffn-layers", "all")
    words = ["convert", str(models / "softmax"), "--plan", "HWSW", "--mixing", "interpolated", *ranks, "--window", "6"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split()).split("arl2 train distill ")[1].split()
    words = [word for word in said[: said.index("layers")] if "=" in word]
    values = with_overrides({"teacher": "x", "clips": [], "loop": {"steps": 1}}, words)
    spec = record_from_mapping(DistillConfig, values).student()
    student = make_student(load_teacher(str(models / "softmax"), device="cpu"), spec)
    made = json.loads((tmp_path / "out/transformer/config.json").read_text())
    for name in ("layer_plan", "state_form", "state_rank", "ffn_rank", "low_rank_alpha", "ffn_rank_layers", "window"):
        assert student.config[name] == made[name], name


def test_layers_that_were_converted_before_keep_their_form(models, tmp_path) -> None:
    """The default plan with what it cannot change."""
    assert main(["convert", str(models / "hybrid"), "-o", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out/transformer/config.json").read_text())
    assert (config["layer_plan"], config["state_form"]) == ("HW", None)


def test_a_hybrid_gains_layers_with_its_own_ranks(models, tmp_path) -> None:
    assert main(["convert", str(models / "hybrid"), "--layers", "1", "-o", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out/transformer/config.json").read_text())
    assert (config["layer_plan"], config["state_rank"], config["ffn_rank"]) == ("HH", 2, 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("softmax", "--plan", "HHHHS"), "names 5 layers but the model has 4"),
        (("softmax", "--plan", "HHXS"), "unknown letters X"),
        (("softmax", "--layers", "0-4"), "no layer 4: the model has layers 0 to 3"),
        (("softmax", "--layers", "0,x"), "numbers and ranges"),
        (("softmax", "--layers", "0", "--keep", "7"), "no layer 7"),
        (("softmax", "--layers", "0", "--keep", "0"), "No layer is left to convert"),
        (("softmax", "--keep", "0-3"), "No layer is left to convert"),
        (("softmax", "--plan", "HHSS", "--mixing", "additive"), "--mixing is of windowed hybrids, but the plan HHSS"),
        (("softmax", "--plan", "SSSS"), "No layer is left to convert"),
        (("softmax", "--plan", "HSSS", "--keep", "0"), "converts layer 0 and --keep leaves it"),
        (("softmax", "--fraction", "0.1"), "Got a share of 0.1"),
        (("softmax", "--layers", "0", "--ranking", "none.json"), "--ranking goes with --fraction"),
        (("softmax", "--fraction", "0.5", "--ranking", "none.json"), "cannot be read"),
        (("hybrid", "--layers", "0"), "No layer is left to convert"),
        (("hybrid", "--layers", "1", "--state-rank", "4"), "have state_rank 2; the others cannot have 4"),
        (("hybrid", "--layers", "1", "--alpha", "4"), "have low_rank_alpha None; the others cannot have 4.0"),
        (("nothing", "--layers", "0"), "There is no model"),
        (("softmax", "--layers", "0", "-o", "softmax"), "is there already"),
    ],
)
def test_conversions_that_cannot_be(models, tmp_path, monkeypatch, capsys, words, said) -> None:
    monkeypatch.chdir(models)
    where = () if "-o" in words else ("-o", str(tmp_path / "out"))
    assert main(["convert", *words, *where]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_exports_give_the_same_video(models, tmp_path, capsys) -> None:
    hybrid = models / "hybrid"
    expected = latents_of(hybrid)
    for name, words in (("kept", ()), ("merged", ("--merge-lora",))):
        for suffix in ("", ".pt", ".safetensors"):
            output = tmp_path / f"{name}{suffix}"
            assert main(["export", str(hybrid), "-o", str(output), *words]) == 0
            found = latents_of(output) if not suffix else latents_of(hybrid, weights=output)
            if name == "kept":
                assert torch.equal(found, expected)
            else:
                assert relative(found, expected) < 1e-5
    said = capsys.readouterr().out
    assert "merged 2 LoRA adapters of feed-forwards" in said
    assert "3 of state branches stay" in said
    assert "block_frames 3" in said
    # And back: a published file over the parts of a pipeline becomes a folder of its own.
    words = [str(hybrid), "--weights", str(tmp_path / "kept.pt"), "-o", str(tmp_path / "back")]
    assert main(["export", *words]) == 0
    assert torch.equal(latents_of(tmp_path / "back"), expected)
    # A file alone becomes another file; no base is needed for that.
    assert main(["export", str(tmp_path / "kept.pt"), "-o", str(tmp_path / "again.safetensors")]) == 0
    assert torch.equal(latents_of(hybrid, weights=tmp_path / "again.safetensors"), expected)


def test_only_tensors_are_in_a_published_file(models, tmp_path) -> None:
    assert main(["export", str(models / "hybrid"), "-o", str(tmp_path / "model.pt")]) == 0
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert set(content) == {"generator"}
    assert "model.blocks.0.self_attn.A_log" in content["generator"]
    assert all(type(tensor) is torch.Tensor for tensor in content["generator"].values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("softmax", "-o", "out", "--merge-low-rank"), "have no LoRA adapters"),
        (("hybrid", "-o", "out.pt", "--layout", "wan"), "holds softmax models only"),
        (("hybrid", "-o", "out", "--layout", "arl2"), "--layout arl2 goes with a file"),
        (("hybrid", "-o", "softmax"), "is there already"),
        (("nothing.pt", "-o", "out.pt"), "There is no file or folder"),
        (("file.pt", "-o", "out"), "give --base"),
        (("hybrid", "-o", "file.pt"), "is there already"),
    ],
)
def test_exports_that_cannot_be(models, monkeypatch, capsys, words, said) -> None:
    monkeypatch.chdir(models)
    if not Path("file.pt").exists():
        assert main(["export", "hybrid", "-o", "file.pt"]) == 0
    assert main(["export", *words]) == 2
    assert said in capsys.readouterr().err
    assert not any(Path(name).exists() for name in ("out", "out.pt", "out.partial"))
