"""Published layouts, in and out; plan, ranks and sizes read off the file; nothing loaded by halves."""

import json
import os
import pickle
import re
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from arl2.checkpoints import export_checkpoint, load_transformer
from arl2.checkpoints.describe import describe
from arl2.checkpoints.layouts import Layout, to_original
from arl2.checkpoints.load import transformer_config, translate
from arl2.checkpoints.reading import read_weights
from arl2.errors import CheckpointError, ConfigError
from arl2.model.passes import DiffusionForcing
from support import randn, same_effect, tiny_config, tiny_model

HEADS = {"num_attention_heads": 2, "text_len": 5, "block_frames": 2}
PLANS = {"S": {}, "SS": {}, "HS": {}, "HHSH": {"ffn_rank_layers": "all"}, "H": {"state_rank": 0, "ffn_rank": 0}}


def same_model(one, other) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("plan", PLANS)
def test_the_arl2_layout_there_and_back(tmp_path, plan, suffix):
    model = tiny_model(plan, **PLANS[plan])
    path = tmp_path / f"model{suffix}"
    export_checkpoint(model, path)
    loaded = load_transformer(path, **HEADS)
    assert same_effect(model, loaded)
    told = {key: loaded.config[key] for key in tiny_config(plan, **PLANS[plan])}
    assert told == tiny_config(plan, **PLANS[plan])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_original_layout_there_and_back(tmp_path, suffix):
    model = tiny_model("SS")
    export_checkpoint(model, tmp_path / f"model{suffix}", layout="wan")
    assert same_model(model, load_transformer(tmp_path / f"model{suffix}", **HEADS))


def test_the_original_layout_holds_no_hybrid(tmp_path):
    with pytest.raises(CheckpointError, match=r'softmax models only, but this plan is HS .* layout="arl2"'):
        export_checkpoint(tiny_model("HS"), tmp_path / "model.pt", layout="wan")
    with pytest.raises(CheckpointError, match=r"export to \.pt or \.safetensors"):
        export_checkpoint(tiny_model("SS"), tmp_path / "model.bin")


def test_published_names_and_shapes(tmp_path):
    published = to_original(tiny_model("H").state_dict(), 1)
    d, head_dim, heads, rank, ffn = 24, 12, 2, 2, 40
    expected = {
        "a_proj.weight": [heads, d],
        "b_proj.weight": [heads, d],
        "gate_proj.weight": [heads, d],
        "A_log": [heads],
        "dt_bias": [heads],
        "phi_q.weight": [d, head_dim, 1],
        "lora_v_A": [d, rank],
        "lora_v_B": [rank, d],
        "norm_k.weight": [d],
        "o.bias": [d],
    }
    for name, shape in expected.items():
        assert list(published[f"blocks.0.self_attn.{name}"].shape) == shape, name
    assert list(published["blocks.0.ffn.0.linear.weight"].shape) == [ffn, d]
    assert list(published["blocks.0.ffn.2.lora_A"].shape) == [ffn, rank]
    assert list(published["blocks.0.modulation"].shape) == [1, 6, d]
    assert list(published["head.modulation"].shape) == [1, 2, d]


def generator_of(model, prefix="model.") -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": t.clone() for name, t in to_original(model.state_dict(), len(model.layers)).items()}


def test_phi_maps_head_h_to_head_h():
    """Our matrices do what the published grouped 1x1 convolution does."""
    from arl2.attention.state_branch import _per_head

    model = tiny_model("H")
    conv = to_original(model.state_dict(), 1)["blocks.0.self_attn.phi_q.weight"]
    x = randn(1, 7, 2, 12)
    theirs = torch.nn.functional.conv1d(x.flatten(2).mT, conv, groups=2).mT.unflatten(-1, (2, 12))
    torch.testing.assert_close(_per_head(model.layers[0].self_attention.state.phi_q, x), theirs)


@pytest.mark.parametrize(
    "prefix",
    ["model.", "model._fsdp_wrapped_module.", "module.model.", "", "model._orig_mod."],
    ids=lambda p: p or "bare",
)
def test_wrappers_of_training_frameworks_are_taken_off(tmp_path, prefix):
    model = tiny_model("HS")
    wrapped = {
        name.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."): tensor
        for name, tensor in generator_of(model, prefix).items()
    }
    torch.save({"generator": wrapped}, tmp_path / "model.pt")
    assert same_model(model, load_transformer(tmp_path / "model.pt", **HEADS))


def test_ema_weights_are_preferred_and_the_choice_can_be_named(tmp_path):
    plain, average = tiny_model("SS", seed=1), tiny_model("SS", seed=2)
    path = tmp_path / "model.pt"
    torch.save({"generator": generator_of(plain), "generator_ema": generator_of(average), "step": 5}, path)
    assert same_model(average, load_transformer(path, **HEADS))
    assert same_model(average, load_transformer(path, weights="ema", **HEADS))
    assert same_model(plain, load_transformer(path, weights="plain", **HEADS))
    found = describe(path, **HEADS)
    assert (found.branch, found.unused) == ("generator_ema", {"generator": len(plain.state_dict()), "step": 0})
    torch.save({"generator": generator_of(plain)}, path)
    with pytest.raises(CheckpointError, match="no generator_ema weights, only generator"):
        load_transformer(path, weights="ema", **HEADS)


def test_folders(tmp_path):
    model = tiny_model("SS")
    (tmp_path / "pipe" / "transformer").mkdir(parents=True)
    model.save_pretrained(tmp_path / "pipe" / "transformer")
    assert same_model(model, load_transformer(tmp_path / "pipe"))
    sharded = tmp_path / "sharded"
    model.save_pretrained(sharded, max_shard_size="30KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert same_model(model, load_transformer(sharded))
    next(iter(sorted(sharded.glob("*.safetensors")))).unlink()
    with pytest.raises(CheckpointError, match=r"lacks .*safetensors, which its index names"):
        load_transformer(sharded)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no \.safetensors file"):
        load_transformer(tmp_path / "empty")


def test_a_config_beside_the_file_tells_what_shapes_cannot(tmp_path):
    path = tmp_path / "model.pt"
    export_checkpoint(tiny_model("SS"), path)
    beside = {"num_heads": 2, "text_len": 5, "num_frame_per_block": 2, "local_attn_size": 6, "sink_size": 1, "dim": 999}
    (tmp_path / "config.json").write_text(json.dumps(beside))
    model = load_transformer(path)
    assert (model.config.num_attention_heads, model.config.block_frames) == (2, 2)
    assert (model.config.window, model.config.sink) == (6, 1)
    assert load_transformer(path, window=9).config.window == 9  # the caller wins
    (tmp_path / "config.json").write_text(json.dumps({**beside, "local_attn_size": -1}))
    assert load_transformer(path).config.window is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        load_transformer(path)


def test_settings_that_the_file_decides_are_refused(tmp_path):
    path = tmp_path / "model.pt"
    export_checkpoint(tiny_model("SS"), path)
    with pytest.raises(ConfigError, match="ffn_dim cannot be set when loading"):
        load_transformer(path, ffn_dim=3, **HEADS)
    with pytest.raises(ConfigError, match="did you mean block_frames"):
        load_transformer(path, block_frame=3)
    with pytest.raises(CheckpointError, match="does not tell its number of heads"):
        load_transformer(path)
    with pytest.raises(CheckpointError, match=r"width 24 is not 5 equal heads; give num_attention_heads"):
        load_transformer(path, num_attention_heads=5)


def test_a_saved_config_is_strict(tmp_path):
    tiny_model("HS").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "layer_plans": "HS"}))
    with pytest.raises(ConfigError, match="setting layer_plans is not known"):
        load_transformer(tmp_path)


class Evil:
    def __reduce__(self):
        return os.system, ("echo this must never run > evil",)


def test_a_pickle_that_wants_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, writer in (("torch.pt", torch.save), ("plain.pt", lambda x, p: p.write_bytes(pickle.dumps(x)))):
        writer({"generator": Evil()}, tmp_path / name)
        with pytest.raises(CheckpointError, match=r"would run code when read|not a whole \.pt file"):
            load_transformer(tmp_path / name)
    torch.save({"generator": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="would run code when read, which is never allowed"):
        load_transformer(tmp_path / "evil.pt")
    assert not (tmp_path / "evil").exists()


def test_broken_files(tmp_path):
    path = tmp_path / "model.pt"
    export_checkpoint(tiny_model("SS"), path)
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"not a whole \.pt file"):
            load_transformer(path)
    safe = tmp_path / "model.safetensors"
    export_checkpoint(tiny_model("SS"), safe)
    for cut in (0, 4, 100, safe.stat().st_size - 10):
        (tmp_path / "cut.safetensors").write_bytes(safe.read_bytes()[:cut])
        with pytest.raises(CheckpointError, match=r"not a whole \.safetensors file"):
            load_transformer(tmp_path / "cut.safetensors")
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(CheckpointError, match=r"archive\.pt"):
        load_transformer(tmp_path / "archive.pt")


def test_files_of_old_torch_load(tmp_path):
    model = tiny_model("SS")
    torch.save({"generator": generator_of(model)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same_model(model, load_transformer(tmp_path / "old.pt", **HEADS))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.patch_embedding.weight", torch.ones(0, 4, 1, 2, 2)),
        ("model.head.head.bias", torch.ones(12).to_sparse()),
        ("model.head.head.bias", torch.ones(12, dtype=torch.complex64)),
        ("model.head.head.bias", torch.ones(12, dtype=torch.int64)),
    ],
)
def test_tensors_that_are_no_weights(tmp_path, name, tensor):
    torch.save({"generator": {**generator_of(tiny_model("SS")), name: tensor}}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="weights are dense, not empty, and of float32"):
        load_transformer(tmp_path / "model.pt", **HEADS)


def test_names_that_are_no_names(tmp_path):
    torch.save({5: torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"no named tensors but 5; .* under one of generator, "):
        load_transformer(tmp_path / "model.pt")


def test_settings_that_cannot_be(tmp_path):
    path = tmp_path / "model.pt"
    export_checkpoint(tiny_model("HS"), path)
    with pytest.raises(ConfigError, match="text_len is -5"):
        load_transformer(path, text_len=-5)
    with pytest.raises(CheckpointError, match="has 2 heads, but 7 were asked for"):
        load_transformer(path, num_attention_heads=7)
    with pytest.raises(CheckpointError, match="'emma' are not known; choose one of auto, ema, plain"):
        read_weights(path, branch="emma")


def test_paths_that_are_no_weights(tmp_path):
    with pytest.raises(CheckpointError, match="no file or folder"):
        load_transformer(tmp_path / "nowhere.pt")
    (tmp_path / "weights.gguf").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"ends in \.gguf; accepted are \.pt"):
        load_transformer(tmp_path / "weights.gguf")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_transformer(tmp_path / "list.pt")
    torch.save({"critic": {"w": torch.ones(1)}}, tmp_path / "critic.pt")
    with pytest.raises(CheckpointError, match=r"no named tensors but critic; .* under one of generator, "):
        load_transformer(tmp_path / "critic.pt")
    torch.save({"generator": {"model.x": 5}}, tmp_path / "number.pt")
    with pytest.raises(CheckpointError, match=r"generator: 'model\.x' is a int; give a file of named tensors alone"):
        load_transformer(tmp_path / "number.pt")


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/evil.safetensors", "shard.pt"])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, name):
    save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointError, match="in the same folder"):
        load_transformer(tmp_path)


def broken_generator(change) -> dict[str, torch.Tensor]:
    tensors = generator_of(tiny_model("HS"))
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.blocks.1.norm3.bias"), r"1 missing \(first layers\.1\.cross_norm\.bias\)"),
        (lambda t: t.pop("model.patch_embedding.weight"), "lacks patch_embedding.weight"),
        (
            lambda t: t.update({"model.blocks.0.img_k.weight": torch.ones(1)}),
            r"looks like ARL2.* 1 tensors .*blocks\.0\.img_k",
        ),
        (lambda t: t.update({"model.head.head.bias": torch.ones(3)}), r"head\.proj\.bias \[3\] instead of \[12\]"),
        (lambda t: [t.pop(k) for k in list(t) if "blocks.0." in k], "no tensors of layer 0"),
        (lambda t: t.pop("model.blocks.0.self_attn.lora_q_A"), r"missing .*changes\.q\.A|unexpected"),
        (lambda t: t.update({"module.blocks.1.norm3.bias": torch.ones(24)}), "twice, under wrapped and plain names"),
        (lambda t: t.update({"model.blocks.0.modulation": torch.ones(6, 24)[None, None]}), r"layers\.0\.modulation"),
        (lambda t: t.update({"model.blocks.0.self_attn.A_log": torch.ones(5)}), "do not agree on a number of heads"),
    ],
)
def test_a_file_that_is_not_exactly_one_model(tmp_path, change, said):
    torch.save({"generator": broken_generator(change)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=said):
        load_transformer(tmp_path / "model.pt", **HEADS)


def test_low_rank_alone_is_named(tmp_path):
    save_file({"blocks.0.lora_A": torch.ones(2), "blocks.0.lora_B": torch.ones(2)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="LoRA"):
        load_transformer(tmp_path / "lora.safetensors")
    save_file({"unet.conv": torch.ones(2)}, tmp_path / "unet.safetensors")
    with pytest.raises(CheckpointError, match=r"no known transformer \(1 tensors, first unet\.conv\); accepted are"):
        load_transformer(tmp_path / "unet.safetensors")


def test_low_rank_on_some_layers_only_is_refused(tmp_path):
    tensors = generator_of(tiny_model("HH"))
    for name in [name for name in tensors if "blocks.1." in name and "lora_" in name and "self_attn" in name]:
        del tensors[name]
    torch.save({"generator": tensors}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=re.escape("one rank on layers [0, 1] is needed")):
        load_transformer(tmp_path / "model.pt", **HEADS)


def test_alpha_is_32_unless_told_and_said_once(tmp_path, caplog):
    """The published default, whatever the rank."""
    path = tmp_path / "model.pt"
    export_checkpoint(tiny_model("H"), path)
    latents, timestep, text = randn(1, 3, 4, 4, 6), torch.full((1, 4), 500.0), randn(1, 5, 10)
    with torch.no_grad():
        default, same, other = (
            load_transformer(path, **HEADS, **alpha)(latents, timestep, text, run=DiffusionForcing())
            for alpha in ({}, {"low_rank_alpha": 32.0}, {"low_rank_alpha": 4.0})
        )
    assert torch.equal(default, same)
    assert not torch.equal(default, other)
    (said,) = [record.getMessage() for record in caplog.records if "alpha" in record.getMessage()]
    assert said.startswith(f"{path} does not say its LoRA alpha: 32 is assumed, the published default.")
    assert "--lora-alpha" in said
    assert transformer_config(path, **HEADS)["low_rank_alpha"] == 32.0


@pytest.mark.parametrize("plan", ["S", "H"])
def test_alpha_is_not_said_where_it_is_known(tmp_path, caplog, plan):
    model = tiny_model(plan)
    model.save_pretrained(tmp_path / "native")
    assert load_transformer(tmp_path / "native").config.low_rank_alpha is None  # ours: twice the rank
    export_checkpoint(model, tmp_path / "model.pt")
    load_transformer(tmp_path / "model.pt", **HEADS, low_rank_alpha=4.0)
    if plan == "S":
        load_transformer(tmp_path / "model.pt", **HEADS)  # without LoRAs there is no alpha
    (tmp_path / "config.json").write_text('{"lora_alpha": 8}')
    assert load_transformer(tmp_path / "model.pt", **HEADS).config.low_rank_alpha == 8
    assert "alpha" not in caplog.text


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf"), True])
def test_alpha_that_is_no_number_above_0(alpha):
    with pytest.raises(ConfigError, match=r"low_rank_alpha is .*; it must be a number above 0"):
        tiny_model("H", low_rank_alpha=alpha)


def test_loading_casts_but_keeps_the_float32_list(tmp_path):
    path = tmp_path / "model.safetensors"
    export_checkpoint(tiny_model("HS"), path)
    model = load_transformer(path, dtype=torch.bfloat16, **HEADS)
    assert model.compute_dtype == torch.bfloat16
    assert model.layers[0].self_attention.state.A_log.dtype == torch.float32
    assert torch.equal(model.layers[0].self_attention.state.A_log, load_file(path)["blocks.0.self_attn.A_log"])
    with pytest.raises(ConfigError, match=r"use torch\.float32"):
        load_transformer(path, dtype=torch.int8, **HEADS)


@pytest.mark.parametrize(
    ("names", "layout"),
    [("wan", Layout.WAN), ("causal", Layout.CAUSAL), ("arl2", Layout.ARL2), ("native", Layout.NATIVE)],
)
def test_layouts_are_told_apart(names, layout):
    softmax, hybrid = tiny_model("SS"), tiny_model("HS")
    tensors = {
        "wan": generator_of(softmax, ""),
        "causal": generator_of(softmax),
        "arl2": generator_of(hybrid),
        "native": hybrid.state_dict(),
    }[names]
    assert translate(dict(tensors), "here").layout is layout


def test_describe_finds_nan_and_counts(tmp_path):
    model = tiny_model("HS")
    with torch.no_grad():
        model.layers[1].ffn.down.weight[0, 0] = float("inf")
    export_checkpoint(model, tmp_path / "model.pt")
    found = describe(tmp_path / "model.pt", height=32, width=48, **HEADS)
    assert found.not_finite == ("model.blocks.1.ffn.2.weight",)
    assert found.plan == "HS"
    assert found.memory.states == 2 * 12 * 12 * 4
    assert found.memory.cache_per_frame == 2 * 6 * 24 * 2
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.low_rank_parameters == 3 * 2 * 2 * 24 + 2 * 2 * (24 + 40)
    assert found.dtypes == {"float32": len(model.state_dict())}
