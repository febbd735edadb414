"""What is exported is whole: read back it is the same model, diffusers reads its own layout and refuses ours."""

import json
import os
import stat
from pathlib import Path

import diffusers
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from arl2.checkpoints import export_checkpoint, load_transformer
from arl2.checkpoints.describe import describe
from arl2.checkpoints.layouts import Layout
from arl2.cli.main import main
from arl2.cli.stored import check_model_place
from arl2.errors import Arl2Error, CheckpointError, ConfigError
from arl2.model.passes import DiffusionForcing
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.pipeline import ARL2Pipeline
from pipeline.stand_in import stand_in_pipeline
from rollout.published_folders import hybrid_file, student, student_file
from support import randn, relative, same_effect, tiny_config, tiny_model

HEADS = {"num_attention_heads": 2, "text_len": 5, "block_frames": 2}
FEW = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))


def same(one: CausalWanTransformer3DModel, other: CausalWanTransformer3DModel) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def theirs(folder: Path) -> tuple[diffusers.WanTransformer3DModel, dict[str, list[str]]]:
    loaded, report = diffusers.WanTransformer3DModel.from_pretrained(
        folder, subfolder="transformer", output_loading_info=True
    )
    return loaded.eval(), report


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 4])
def test_diffusers_loads_its_layout_and_gives_the_same_output(tmp_path: Path, frames: int) -> None:
    """Causal masks act between blocks: a clip of one block is one bidirectional pass."""
    model = tiny_model("SSS", block_frames=frames)
    export_checkpoint(model, tmp_path / "out", layout="diffusers")
    loaded, report = theirs(tmp_path / "out")
    assert not any(report.values())
    assert loaded.config.num_layers == 3
    latents, text = randn(2, 3, frames, 4, 6), randn(2, 5, 10, seed=1)
    timestep = torch.tensor([937.5, 250.0])
    ours = model(latents, timestep[:, None].expand(2, frames), text, run=DiffusionForcing())
    other = loaded(hidden_states=latents, timestep=timestep, encoder_hidden_states=text).sample
    assert relative(ours, other) < 2e-5


def test_what_diffusers_layout_holds(tmp_path: Path) -> None:
    model = tiny_model("SS")
    export_checkpoint(model, tmp_path / "out", layout="diffusers")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert same(model, load_transformer(tmp_path / "out", **HEADS))
    assert describe(tmp_path / "out", height=32, width=48, **HEADS).layout is Layout.WAN_DIFFUSERS
    with pytest.raises(CheckpointError, match=r"diffusers' layout holds softmax models only, .* plan is HS .*save_pre"):
        export_checkpoint(tiny_model("HS"), tmp_path / "other", layout="diffusers")
    with pytest.raises(CheckpointError, match="named like a file; the layout of diffusers is a folder"):
        export_checkpoint(model, tmp_path / "model.pt", layout="diffusers")
    with pytest.raises(CheckpointError, match="out cannot be written"):
        export_checkpoint(model, tmp_path / "out", layout="diffusers")
    export_checkpoint(model, tmp_path / "out", layout="diffusers", replace=True)


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student_file(tmp_path / "student.pt")
    hybrid_file(tmp_path / "hybrid.pt")
    out = str(tmp_path / "out")
    assert main(["export", str(tmp_path / "student.pt"), "--layout", "diffusers", "-o", out]) == 0
    assert not any(theirs(tmp_path / "out")[1].values())
    assert same(student(), load_transformer(out, text_len=512, block_frames=3))
    assert "does not tell its block_frames" in capsys.readouterr().out
    words = ["export", str(tmp_path / "student.pt"), "--layout", "diffusers", "-o", out]
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert main(["export", str(tmp_path / "hybrid.pt"), "--layout", "diffusers", "-o", f"{out}2"]) == 2
    assert "diffusers' layout holds softmax models only" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "student.pt"), "--layout", "diffusers", "-o", f"{out}.pt"]) == 2
    assert "--layout diffusers goes with a folder" in capsys.readouterr().err


def test_only_an_export_in_the_layout_of_diffusers_gives_way(tmp_path: Path) -> None:
    export_checkpoint(tiny_model("SS"), tmp_path / "out", layout="diffusers")
    check_model_place(tmp_path / "out", overwrite=True)
    for mine in (tmp_path / "out" / "transformer" / "mine.txt", tmp_path / "out" / "mine.txt"):
        mine.write_text("mine")
        with pytest.raises(ConfigError, match="holds other things"):
            check_model_place(tmp_path / "out", overwrite=True)
        mine.unlink()


@pytest.mark.parametrize("plan", ["HS", "SS"])
def test_diffusers_refuses_our_folders_and_says_whose_they_are(tmp_path: Path, plan: str) -> None:
    pipe = stand_in_pipeline(plan)
    pipe.save_pretrained(tmp_path / "saved")
    with pytest.raises(AttributeError, match=r"load this folder with arl2\.ARL2Pipeline\.from_pretrained"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="CausalWanTransformer3DModel"):
        diffusers.AutoModel.from_pretrained(str(tmp_path / "saved" / "transformer"))
    with pytest.raises(TypeError):  # num_layers of our config is a sentence
        diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "saved", subfolder="transformer")
    config = json.loads((tmp_path / "saved" / "transformer" / "config.json").read_text())
    assert config["num_layers"] == "see layer_plan; read with arl2.CausalWanTransformer3DModel or arl2.ARL2Pipeline"


def test_our_folders_are_read_with_and_without_what_is_for_others(tmp_path: Path) -> None:
    pipe = stand_in_pipeline("HS")
    pipe.save_pretrained(tmp_path / "saved")
    whole = ARL2Pipeline.from_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "model_index.json").unlink()
    config = tmp_path / "saved" / "transformer" / "config.json"
    content = json.loads(config.read_text())
    del content["num_layers"]
    config.write_text(json.dumps(content))
    old = ARL2Pipeline.from_pretrained(tmp_path / "saved")
    assert same(whole.transformer, pipe.transformer)
    assert same(old.transformer, pipe.transformer)
    assert old.transformer.config == whole.transformer.config


def test_our_transformer_is_saved_and_read_as_in_diffusers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("HS")
    model.save_pretrained(tmp_path)
    loaded = CausalWanTransformer3DModel.from_pretrained(tmp_path)
    assert same(model, loaded)
    assert "num_layers" not in loaded.config
    assert not caplog.records


@pytest.mark.skipif(os.name != "posix", reason="other systems have no mask")
@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_files_may_be_read_by_whom_the_mask_lets(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        pipe = stand_in_pipeline("SS")
        pipe.save_pretrained(tmp_path / "saved")
        pipe.transformer.save_pretrained(tmp_path / "transformer")
        export_checkpoint(pipe.transformer, tmp_path / "wan.safetensors", layout="wan")
        export_checkpoint(pipe.transformer, tmp_path / "wan.pt", layout="wan")
        export_checkpoint(pipe.transformer, tmp_path / "theirs", layout="diffusers")
        assert main(["convert", str(tmp_path / "saved"), "--layers", "0", "-o", str(tmp_path / "converted")]) == 0
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 12
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~mask}


PLANS = st.text("HS", min_size=1, max_size=3)


@FEW
@given(plan=PLANS, suffix=st.sampled_from([".pt", ".safetensors"]), seed=st.integers(0, 9), everywhere=st.booleans())
def test_the_arl2_layout_there_and_back(tmp_path_factory, plan: str, suffix: str, seed: int, everywhere: bool) -> None:
    changes = {"ffn_rank_layers": "all"} if everywhere and {*plan} == {*"HS"} else {}
    model = tiny_model(plan, seed, **changes)
    path = tmp_path_factory.mktemp("export") / f"model{suffix}"
    export_checkpoint(model, path)
    loaded = load_transformer(path, **HEADS)
    assert same_effect(model, loaded)
    wanted = tiny_config(plan, **changes)
    assert {name: loaded.config[name] for name in wanted} == wanted


@FEW
@given(layers=st.integers(1, 4), layout=st.sampled_from(["wan", "diffusers"]), seed=st.integers(0, 9))
def test_layouts_of_softmax_models_there_and_back(tmp_path_factory, layers: int, layout: str, seed: int) -> None:
    model = tiny_model("S" * layers, seed)
    path = tmp_path_factory.mktemp("export") / ("model.safetensors" if layout == "wan" else "model")
    export_checkpoint(model, path, layout=layout)
    assert same(model, load_transformer(path, **HEADS))


@FEW
@given(plan=PLANS, seed=st.integers(0, 9))
def test_our_own_folder_there_and_back(tmp_path_factory, plan: str, seed: int) -> None:
    model = tiny_model(plan, seed)
    path = tmp_path_factory.mktemp("export") / "model"
    model.save_pretrained(path)
    loaded = load_transformer(path)
    assert same(model, loaded)
    assert {name: loaded.config[name] for name in tiny_config(plan)} == tiny_config(plan)


ESCAPE = "\x1b[31m\x07\u202e"


def test_names_from_files_cannot_steer_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("SS")
    with torch.no_grad():
        model.head.proj.bias[0] = float("nan")
    named = {name: x.clone() for name, x in model.state_dict().items()}
    files = {
        "stranger.safetensors": {**named, f"layers.0.{ESCAPE}": torch.ones(1)},
        "foreign.safetensors": {f"x{ESCAPE}": torch.ones(1)},
        "scale.safetensors": {**named, f"{ESCAPE}.scale_weight": torch.ones(1)},
    }
    for name, tensors in files.items():
        save_file(tensors, tmp_path / name)
        assert main(["inspect", str(tmp_path / name), "--heads", "2"]) == 2
        with pytest.raises(Arl2Error) as caught:
            load_transformer(tmp_path / name, **HEADS)
        assert r"\x1b[31m\x07\u202e" in str(caught.value)
    torch.save({"generator": named, f"opt{ESCAPE}": {"x": torch.ones(1)}}, tmp_path / "unused.pt")
    assert main(["inspect", str(tmp_path / "unused.pt"), "--heads", "2"]) == 1
    said = capsys.readouterr()
    assert r"\x1b[31m\x07\u202e" in said.out
    assert r"\x1b[31m\x07\u202e" in said.err
    assert not any(sign in said.out + said.err for sign in ("\x07", "\u202e", "\x1b[31m"))
