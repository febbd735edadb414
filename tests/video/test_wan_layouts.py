"""Both published layouts of the Wan VAE load exactly, a pipeline carries it, damaged and foreign files are refused."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

from arl2.errors import Arl2Error, CheckpointError, ConfigError
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.settings import GenerationSettings
from arl2.shapes.prompts.text import ShapesText
from arl2.video.wan_codec import WanCodec
from support import tiny_model
from video.tiny_wan import narrow_vae, original_tensors, tiny_vae

LATENTS = torch.randn(1, 16, 2, 2, 3, generator=torch.Generator().manual_seed(1))
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def narrow() -> AutoencoderKLWan:
    return narrow_vae()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    WanCodec(tiny_vae()).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_original_file_loads(narrow: AutoencoderKLWan, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"Wan2.1_VAE{suffix}"
    tensors = original_tensors(narrow)
    assert "decoder.upsamples.7.time_conv.weight" in tensors
    _ = torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    codec = WanCodec.from_published(path)
    assert torch.equal(codec.decode(LATENTS), WanCodec(narrow).decode(LATENTS))
    assert not codec.training
    half = WanCodec.from_published(path, torch_dtype=torch.bfloat16)
    assert {x.dtype for x in half.parameters()} == {torch.bfloat16}
    assert half.decode(LATENTS).isfinite().all()


@torch.no_grad()
def test_a_single_file_with_diffusers_names_loads(narrow: AutoencoderKLWan, tmp_path: Path) -> None:
    save_file(narrow.state_dict(), tmp_path / "wan_2.1_vae.safetensors")
    codec = WanCodec.from_published(tmp_path / "wan_2.1_vae.safetensors")
    assert torch.equal(codec.decode(LATENTS), WanCodec(narrow).decode(LATENTS))


def test_default_sizes_are_the_published_ones() -> None:
    with torch.device("meta"):
        codec = WanCodec(AutoencoderKLWan())
    names = original_tensors(codec.vae)
    assert (codec.latent_channels, codec.spatial_factor, codec.temporal_factor) == (16, 8, 4)
    assert tuple(names["encoder.conv1.weight"].shape) == (96, 3, 3, 3, 3)
    assert tuple(names["decoder.upsamples.4.shortcut.weight"].shape) == (384, 192, 1, 1, 1)
    assert tuple(names["decoder.head.2.weight"].shape) == (3, 96, 3, 3, 3)
    assert tuple(names["conv1.weight"].shape) == (32, 32, 1, 1, 1)
    assert len(names) == 194


@torch.no_grad()
def test_a_folder_is_that_of_diffusers(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS]
    assert json.loads((folder / "config.json").read_text())["_class_name"] == "AutoencoderKLWan"
    theirs = AutoencoderKLWan.from_pretrained(folder)
    codec, report = WanCodec.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert dict(codec.config)["base_dim"] == theirs.config.base_dim == 8
    latents = LATENTS[:, :4]
    assert torch.equal(codec.decode(latents), WanCodec(theirs).decode(latents))
    assert WanCodec.from_pretrained(folder, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_pipeline_carries_it(tmp_path: Path) -> None:
    text = ShapesText.build(width=10)
    transformer = tiny_model("SH", block_frames=2, text_len=text.length, in_channels=4, out_channels=4)
    settings = GenerationSettings(steps=(1000,), shift=3.0, window=6, height=32, width=32, num_frames=13)
    pipe = ARL2Pipeline(transformer, WanCodec(tiny_vae()), text, settings)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.to(torch.device("cpu")) is pipe
    pipe.save_pretrained(tmp_path / "saved")
    back = ARL2Pipeline.from_pretrained(tmp_path / "saved")
    back.set_progress_bar_config(disable=True)
    assert type(back.codec) is WanCodec
    prompt = "a red circle moves right on navy"
    frames, again = (one(prompt, seed=1, output_type="pt").frames for one in (pipe, back))
    assert frames.shape == (1, 13, 3, 32, 32)
    assert torch.equal(frames, again)
    half = ARL2Pipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half(prompt, seed=1, output_type="pt").frames.isfinite().all()


def _without_one(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in tensors.items() if name != "decoder.head.2.bias"}


def _misshapen(tensors: dict[str, Any]) -> dict[str, Any]:
    return {**tensors, "conv1.bias": torch.zeros(31)}


def _widened(tensors: dict[str, Any]) -> dict[str, Any]:
    return {**tensors, "encoder.conv1.weight": torch.zeros(6, 3, 3, 3, 3)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without_one, "1 tensors do not fit, first: decoder.conv_out.bias is missing"),
        (lambda t: {**t, "model.ema": torch.zeros(1)}, "1 tensors do not fit, first: model.ema is unexpected"),
        (_misshapen, r"1 tensors do not fit, first: quant_conv.bias is \[31\] instead of \[32\]"),
        (_widened, "tensors do not fit, first"),
        (lambda t: {**t, "encoder.conv_in.bias": torch.zeros(4)}, "several tensors for one place"),
        (lambda t: {**t, "decoder.upsamples.x.residual": torch.zeros(4)}, "names that no Wan 2.1 VAE has"),
        (lambda t: {**t, "conv2.weight": torch.zeros(48, 48, 1, 1, 1)}, "48 latent channels"),
        (lambda t: {"blocks.0.self_attn.q.weight": torch.zeros(2, 2)}, "no encoder.conv_in.weight"),
        (lambda t: {"vae": t}, "no named tensors but vae"),
        (lambda t: {**t, "step": torch.tensor(3)}, "step is .* torch.int64"),
        (lambda t: list(t.values()), "holds a list; a checkpoint is a dict"),
    ],
)
def test_files_that_are_not_exactly_one_vae(
    narrow: AutoencoderKLWan, tmp_path: Path, change: Callable[[Any], Any], said: str
) -> None:
    torch.save(change(original_tensors(narrow)), tmp_path / "vae.pth")
    with pytest.raises(CheckpointError, match=said):
        WanCodec.from_published(tmp_path / "vae.pth")


class _Intruder:
    def __reduce__(self) -> tuple:
        return (print, ("code ran",))


def test_damaged_and_hostile_files(narrow: AutoencoderKLWan, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "vae.pth"
    torch.save(original_tensors(narrow), path)
    (tmp_path / "half.pth").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "code.pth").write_bytes(pickle.dumps(_Intruder()))
    (tmp_path / "half.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "vae.gguf").touch()
    for name, said in [
        ("half.pth", "not a whole file"),
        ("empty.pth", "is empty"),
        ("code.pth", "never allowed"),
        ("half.safetensors", "not a whole"),
        ("vae.gguf", "ends in .gguf; accepted are"),
        ("nothing.pth", "There is no file"),
    ]:
        with pytest.raises(CheckpointError, match=said):
            WanCodec.from_published(tmp_path / name)
    assert "code ran" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"compute dtype is torch\.int8"):
        WanCodec.from_published(path, torch_dtype=torch.int8)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"_class_name": "AutoencoderKL"}, CheckpointError, "not the config of an AutoencoderKLWan"),
        ({"base_dim": 16}, CheckpointError, "tensors do not fit"),
        ({"base_dim": 10**12}, ConfigError, "base_dim"),
        ({"base_dim": True}, ConfigError, "base_dim"),
        ({"num_res_blocks": 10**9}, ConfigError, "num_res_blocks"),
        ({"dim_mult": [1, 2, -2, 2]}, ConfigError, "dim_mult"),
        ({"dim_mult": 3}, ConfigError, "dim_mult"),
        ({"temperal_downsample": [False, True]}, ConfigError, "temperal_downsample"),
        ({"attn_scales": [0.5]}, ConfigError, "attn_scales"),
        ({"latents_std": ["1"] * 4}, ConfigError, "latents_std"),
        ({"latents_mean": None}, ConfigError, "latents_mean"),
        ({"is_residual": True}, ConfigError, "is_residual"),
        ({"is_residual": True, "clip_output": False}, ConfigError, "Wan 2.2"),
    ],
)
def test_folders_with_a_foreign_config(folder: Path, changes: dict, error: type[Arl2Error], said: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(error, match=said):
        WanCodec.from_pretrained(folder)


def test_a_setting_that_is_not_read_warns(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "clip_output": False}))
    with pytest.warns(UserWarning, match="sets clip_output, which the VAE does not read"):
        assert WanCodec.from_pretrained(folder).latent_channels == 4


def test_damaged_folders(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({name: x for name, x in tensors.items() if "conv_in" not in name}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"4 tensors do not fit, first: .*conv_in.* is missing"):
        WanCodec.from_pretrained(folder)
    (folder / "other.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"2 \.safetensors files"):
        WanCodec.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        WanCodec.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="not there"):
        WanCodec.from_pretrained(folder / "nowhere")
