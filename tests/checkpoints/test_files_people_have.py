"""Weights as people have them: behind any prefix, inside any checkpoint, with any suffix, in 8 bits; or a sentence why
not."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from arl2.checkpoints import load_transformer
from arl2.checkpoints.describe import describe
from arl2.checkpoints.layouts import Layout, to_original
from arl2.checkpoints.stored import load_stored
from arl2.errors import CheckpointError
from arl2.model.transformer import CausalWanTransformer3DModel
from checkpoints.eight_bits import eight_bits
from support import relative, tiny_model

HEADS = {"num_attention_heads": 2, "text_len": 5, "block_frames": 2}


@pytest.fixture(scope="module")
def model() -> CausalWanTransformer3DModel:
    return tiny_model("SS")


def named(model: CausalWanTransformer3DModel, prefix: str = "") -> dict[str, Tensor]:
    """Under the original names."""
    return {f"{prefix}{name}": x.clone() for name, x in to_original(model.state_dict(), len(model.layers)).items()}


def same(one: CausalWanTransformer3DModel, other: CausalWanTransformer3DModel) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("prefix", "layout"),
    [
        ("diffusion_model.", Layout.WAN),
        ("model.diffusion_model.", Layout.WAN),
        ("module.model.", Layout.CAUSAL),
        ("model.module.", Layout.CAUSAL),
        ("model.diffusion_model._orig_mod.", Layout.WAN),
        ("transformer.", Layout.WAN),
        ("pipe.dit.", Layout.WAN),
    ],
)
def test_prefixes(tmp_path: Path, model: CausalWanTransformer3DModel, prefix: str, layout: Layout) -> None:
    save_file(named(model, prefix), tmp_path / "model.safetensors")
    assert same(model, load_transformer(tmp_path / "model.safetensors", **HEADS))
    assert describe(tmp_path / "model.safetensors", height=32, width=48, **HEADS).layout is layout


@pytest.mark.parametrize("prefix", ["", "module.", "model.diffusion_model."])
def test_prefixes_of_our_own_and_of_diffusers_names(tmp_path: Path, prefix: str) -> None:
    hybrid = tiny_model("HS")
    save_file({prefix + name: x for name, x in hybrid.state_dict().items()}, tmp_path / "model.safetensors")
    settings = {**HEADS, "low_rank_alpha": None}
    assert same(hybrid, load_transformer(tmp_path / "model.safetensors", **settings))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a.patch_embedding.weight": 1, "b.patch_embedding.weight": 1}, r"several transformers, behind a\., b\.;"),
        (
            {"a.patch_embedding.weight": 1, "vae.x": 1, "vae.y": 1},
            r"behind a\. and 2 other tensors, first vae\.x, vae\.y",
        ),
    ],
)
def test_files_of_more_than_one_model(tmp_path: Path, tensors: dict[str, int], said: str) -> None:
    save_file({name: torch.ones(1) for name in tensors}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=said):
        load_transformer(tmp_path / "model.safetensors")


CONTAINERS: dict[str, Any] = {
    "state_dict": lambda x: {"state_dict": x, "epoch": 3, "lr_schedulers": [{"a": 1}]},
    "model": lambda x: {"model": x, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "module": lambda x: {"module": x, "ds_config": {"zero": 1}, "ds_version": "0.1", "global_steps": 5},
    "state_dict.model": lambda x: {"state_dict": {"model": x}, "step": torch.ones(1)},
    "model.state_dict.module": lambda x: {"model": {"state_dict": {"module": x}}},
    "generator.state_dict": lambda x: {"generator": {"state_dict": x}, "critic": {"w": torch.ones(1)}},
    "ema": lambda x: {"ema": x, "model": {"w": torch.ones(1)}},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_suffixes(tmp_path: Path, model: CausalWanTransformer3DModel, suffix: str) -> None:
    torch.save(named(model), tmp_path / f"model{suffix}")
    assert same(model, load_transformer(tmp_path / f"model{suffix}", **HEADS))


@pytest.mark.parametrize(
    ("branch", "prefix"), list(zip(CONTAINERS, itertools.cycle(["", "model.", "model.diffusion_model."]), strict=False))
)
def test_containers(tmp_path: Path, model: CausalWanTransformer3DModel, branch: str, prefix: str) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(CONTAINERS[branch](named(model, prefix)), path)
    assert same(model, load_transformer(path, **HEADS))
    assert describe(path, height=32, width=48, **HEADS).branch == branch


def test_branches_of_a_container(tmp_path: Path) -> None:
    plain, average = tiny_model("SS", seed=1), tiny_model("SS", seed=2)
    torch.save({"state_dict": {"model": named(plain), "model_ema": named(average)}}, tmp_path / "model.ckpt")
    assert same(average, load_transformer(tmp_path / "model.ckpt", **HEADS))
    assert same(plain, load_transformer(tmp_path / "model.ckpt", weights="plain", **HEADS))
    torch.save({"state_dict": named(plain)}, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match="no state_dict_ema weights, only state_dict; choose another branch"):
        load_transformer(tmp_path / "model.ckpt", weights="ema", **HEADS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": {"a": torch.ones(1)}, "state_dict": {}}, "holds several models: state_dict, model; save the one"),
        ({"params": {"a": torch.ones(1)}}, "no named tensors but params; .* under one of generator, state_dict, model"),
        ({"state_dict": {"a": torch.ones(1), "b": 3}}, "state_dict: 'b' is a int; give a file of named tensors alone"),
        ({"model": {}}, "model holds no named tensors"),
        ({"ema": {"a": torch.ones(1)}}, "has no ema weights"),
    ],
)
def test_containers_that_are_refused(tmp_path: Path, content: Any, said: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=said):
        load_transformer(tmp_path / "model.pt", weights="plain" if "ema" in content else "auto", **HEADS)


def test_a_container_that_holds_itself_many_times_is_read_once(tmp_path: Path) -> None:
    deep: dict[str, Any] = {"x": torch.ones(1)}
    for _ in range(28):
        deep = {"a": deep, "b": deep}
    torch.save({"generator": named(tiny_model("SS")), "opt": deep}, tmp_path / "model.pt")
    assert describe(tmp_path / "model.pt", height=32, width=48, **HEADS).unused == {"opt": 1}


@pytest.mark.parametrize("name", ["model.pt", "anything.ckpt", "pytorch_model.bin", "x.safetensors"])
def test_a_folder_with_one_file(tmp_path: Path, model: CausalWanTransformer3DModel, name: str) -> None:
    save = save_file if name.endswith(".safetensors") else torch.save
    save(named(model), tmp_path / name)
    assert same(model, load_transformer(tmp_path, **HEADS))
    if name == "model.pt":
        torch.save({"x": torch.ones(1)}, tmp_path / "optimizer.pt")
        assert same(model, load_transformer(tmp_path, **HEADS))


def test_a_folder_with_several_files_names_them(tmp_path: Path) -> None:
    for name in ("a.pt", "b.ckpt"):
        torch.save({"x": torch.ones(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"has 2 checkpoints \(a\.pt, b\.ckpt\); name the one to load"):
        load_transformer(tmp_path)
    for name in ("c.safetensors", "d.safetensors"):
        save_file({"x": torch.ones(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"no index \(c\.safetensors, d\.safetensors\); name the one to load"):
        load_transformer(tmp_path)


KINDS = (torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_8_bit_weights_are_widened(tmp_path: Path, model: CausalWanTransformer3DModel, kind: torch.dtype) -> None:
    path = tmp_path / "model_fp8.safetensors"
    tensors = named(model, "diffusion_model.")
    save_file(eight_bits(tensors, kind, scaled=None), path)
    wanted = {name: x.to(kind).float() for name, x in tensors.items()}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        loaded = to_original(load_transformer(path, dtype=dtype, **HEADS).state_dict(), 2)
        assert all(torch.equal(loaded[name.removeprefix("diffusion_model.")].float(), x) for name, x in wanted.items())
    assert load_transformer(path, **HEADS).compute_dtype == torch.bfloat16
    exact = to_original(load_stored(path, **HEADS).state_dict(), 2)
    assert all(torch.equal(exact[name.removeprefix("diffusion_model.")].float(), x) for name, x in wanted.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("scaled", "rows", "marker"), [("scale_weight", False, 0), ("scale_weight", False, 2), ("weight_scale", True, None)]
)
def test_scaled_8_bit_weights_are_multiplied(
    tmp_path: Path, model: CausalWanTransformer3DModel, kind: torch.dtype, scaled: str, rows: bool, marker: int | None
) -> None:
    path, prefix = tmp_path / "model_fp8_scaled.safetensors", "model.diffusion_model."
    stored = eight_bits(named(model, prefix), kind, scaled=scaled, rows=rows)
    mark = {} if marker is None else {f"{prefix}scaled_fp8": torch.zeros(marker, dtype=kind)}
    save_file({**stored, **mark}, path)
    loaded = to_original(load_transformer(path, dtype=torch.float32, **HEADS).state_dict(), 2)
    for name, x in named(model).items():
        scale = stored.get(f"{prefix}{name.removesuffix('weight')}{scaled}") if name.endswith(".weight") else None
        meant = stored[prefix + name].float() * (1.0 if scale is None else scale)
        assert torch.equal(loaded[name], meant)
        assert relative(loaded[name], x) < 0.1
    exact = to_original(load_stored(path, **HEADS).state_dict(), 2)
    assert all(torch.equal(exact[name], x) for name, x in loaded.items())
    found = describe(path, height=32, width=48, **HEADS)
    assert found.scaled == sum(name.endswith(scaled) for name in stored)
    assert not found.not_finite


NAME = "blocks.0.self_attn.q."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(f"{NAME}scale_weight"), r"1 have no scale, first blocks\.0\.self_attn\.q\.weight"),
        (lambda t: [t.pop(name) for name in list(t) if "scale" in name and name != "scaled_fp8"], "have no scale"),
        (lambda t: t.pop(f"{NAME}weight"), r"a scale for blocks\.0\.self_attn\.q\.weight and no such weight"),
        (
            lambda t: t.update({f"{NAME}scale_weight": torch.ones(5)}),
            r"the scale of .*\[24, 24\] is \[5\] torch\.float32",
        ),
        (lambda t: t.update({f"{NAME}scale_weight": torch.ones(1, 24)}), r"is \[1, 24\]"),
        (lambda t: t.update({f"{NAME}scale_weight": torch.tensor(float("nan"))}), "one finite number for the weight"),
        (lambda t: t.update({f"{NAME}scale_weight": torch.tensor(3)}), r"is \[\] torch\.int64"),
    ],
)
def test_scales_that_are_missing_or_misshapen(
    tmp_path: Path, model: CausalWanTransformer3DModel, change: Any, said: str
) -> None:
    stored = eight_bits(named(model), KINDS[0], scaled="scale_weight")
    stored["scaled_fp8"] = torch.zeros(0, dtype=KINDS[0])
    change(stored)
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=said):
        load_transformer(tmp_path / "model.safetensors", **HEADS)


def test_two_transformers_are_refused_before_loading(tmp_path: Path, model: CausalWanTransformer3DModel) -> None:
    for layout in (("transformer", "transformer_2"), ("high_noise_model", "low_noise_model")):
        for name in layout:
            model.save_pretrained(tmp_path / layout[0] / name)
            (tmp_path / layout[0] / name / "diffusion_pytorch_model.safetensors").write_bytes(b"not read")
        with pytest.raises(CheckpointError, match=r"pipeline of two transformers .*Wan 2\.2 A14B"):
            load_transformer(tmp_path / layout[0])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_of_other_parts_beside_a_transformer(
    tmp_path: Path, model: CausalWanTransformer3DModel, suffix: str
) -> None:
    model.save_pretrained(tmp_path / "pipeline" / "transformer")
    (tmp_path / "original").mkdir()
    save_file(named(model), tmp_path / "original" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "checkpoint").mkdir()
    torch.save(named(model), tmp_path / "checkpoint" / "model.ckpt")
    for folder in tmp_path.iterdir():
        for name in ("taew2_1", "Wan2.1_VAE", "models_t5_umt5-xxl-enc-bf16"):
            (folder / f"{name}{suffix}").write_bytes(b"not read")
        assert same(model, load_transformer(folder, **({} if folder.name == "pipeline" else HEADS)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.update({"patch_embedding.weight": torch.ones(24, 8, 1, 2, 2)}),
            r"takes latents of 8 channels and gives 3: it is an image-to-video .* only text-to-video transformers load",
        ),
        (
            lambda t: t.update({"img_emb.proj.0.weight": torch.ones(2)}),
            "it is an image-to-video model: only text-to-video transformers load",
        ),
    ],
)
def test_image_to_video_models_are_refused(
    tmp_path: Path, model: CausalWanTransformer3DModel, change: Any, said: str
) -> None:
    tensors = named(model)
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=said):
        load_transformer(tmp_path / "model.safetensors", **HEADS)
