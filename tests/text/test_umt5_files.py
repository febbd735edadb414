"""What a UMT5 text part reads from disk is checked: exactly one encoder, one tokenizer, or an error that says why."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from arl2.errors import CheckpointError
from arl2.text.umt5 import UMT5Text
from arl2.text.umt5_files import open_encoder_file, open_encoder_folder, open_tokenizer
from arl2.text.umt5_layout import wan_names
from text.tiny_umt5 import original_names, tiny_encoder, write_diffusers, write_original


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_diffusers(tmp_path_factory.mktemp("diffusers"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def set_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def test_every_original_tensor_has_its_name() -> None:
    encoder = tiny_encoder()
    original, named = original_names(encoder), encoder.state_dict()
    names = wan_names(2)
    assert set(names.values()) == set(original)
    assert set(names) == set(named) - {"encoder.embed_tokens.weight"}
    for ours, wan in names.items():
        assert torch.equal(named[ours], original[wan])


def test_sizes_are_read_off_the_tensors(tmp_path: Path) -> None:
    weights, _ = write_original(tmp_path)
    config = open_encoder_file(weights).config
    assert (config.vocab_size, config.d_model, config.d_kv, config.d_ff) == (40, 32, 6, 48)
    assert (config.num_layers, config.num_heads, config.relative_attention_num_buckets) == (2, 4, 8)
    assert (config.relative_attention_max_distance, config.layer_norm_epsilon) == (128, 1e-6)


def test_settings_that_no_tensor_tells_come_from_the_config(folder: Path) -> None:
    set_config(folder, relative_attention_max_distance=64, layer_norm_epsilon=1e-5, torch_dtype="bfloat16")
    config = open_encoder_folder(folder / "text_encoder").config
    assert (config.relative_attention_max_distance, config.layer_norm_epsilon) == (64, 1e-5)
    built = open_encoder_folder(folder / "text_encoder").build(device=torch.device("cpu"), dtype=torch.float32)
    assert built.encoder.final_layer_norm.variance_epsilon == 1e-5


def test_the_embedding_may_have_either_name_or_both(folder: Path) -> None:
    first = open_encoder_folder(folder / "text_encoder").fingerprint(torch.float32)
    set_tensors(folder, lambda t: t.update({"encoder.embed_tokens.weight": t["shared.weight"].clone()}))
    assert open_encoder_folder(folder / "text_encoder").fingerprint(torch.float32) == first
    set_tensors(folder, lambda t: t.pop("shared.weight"))
    assert open_encoder_folder(folder / "text_encoder").fingerprint(torch.float32) == first
    set_tensors(folder, lambda t: t.update({"shared.weight": t["encoder.embed_tokens.weight"] + 1}))
    with pytest.raises(CheckpointError, match=r"shared.weight and encoder.embed_tokens.weight differ"):
        open_encoder_folder(folder / "text_encoder")
    set_tensors(folder, lambda t: t.update({"shared.weight": t["encoder.embed_tokens.weight"].bfloat16()}))
    with pytest.raises(CheckpointError, match="differ; they are one tensor"):
        open_encoder_folder(folder / "text_encoder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.1.attn.o.weight"), r"1 missing \(first blocks.1.attn.o.weight\)"),
        (lambda t: [t.pop(f"blocks.1.attn.{one}.weight") for one in "qkvo"], r"4 missing \(first [^,]*,[^,]*,[^,]*\)"),
        (lambda t: t.update({"head.weight": torch.ones(2)}), r"1 unexpected \(first head.weight\)"),
        (lambda t: t.update({"blocks.9.norm1.weight": torch.ones(32)}), r"10 missing \(first .*1 unexpected"),
        (
            lambda t: t.update({"blocks.1.ffn.fc2.weight": torch.ones(48, 32)}),
            r"1 of a wrong shape \(first blocks.1.ffn.fc2.weight \[48, 32\] instead of \[32, 48\]\)",
        ),
        (lambda t: t.pop("blocks.0.attn.q.weight"), r"has no matrix .*'blocks.0.attn.q.weight'"),
        (lambda t: t.update({"blocks.0.attn.q.weight": torch.ones(23, 32)}), "heads must divide the queries' rows"),
        (
            lambda t: t.update({"blocks.0.pos_embedding.embedding.weight": torch.ones(7, 4)}),
            "position buckets are even",
        ),
        (lambda t: t.update({"norm.weight": torch.ones(32, dtype=torch.int64)}), r"norm.weight is \[32\] torch.int64"),
        (lambda t: t.update({"norm.weight": torch.ones(0)}), "weights are dense, not empty"),
        (lambda t: t.update({"norm.weight": torch.ones(32).to_sparse()}), "torch.sparse_coo; weights are dense"),
        (lambda t: t.clear(), "holds no named tensors"),
        (lambda t: t.update({"step": 3}), "'step' is a int; give a file of named tensors alone"),
    ],
)
def test_an_original_file_that_is_not_one_encoder_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    tensors: dict[str, Any] = dict(original_names(tiny_encoder()))
    change(tensors)
    torch.save(tensors, tmp_path / "encoder.pth")
    with pytest.raises(CheckpointError, match=message):
        open_encoder_file(tmp_path / "encoder.pth")


class _Code:
    """What runs code when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("ran",))


def test_files_that_are_no_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, _ = write_original(tmp_path)
    with pytest.raises(CheckpointError, match="There is no file"):
        open_encoder_file(tmp_path / "missing.pth")
    (tmp_path / "encoder.gguf").write_bytes(weights.read_bytes())
    with pytest.raises(CheckpointError, match=r"ends in .gguf; accepted are .pt"):
        open_encoder_file(tmp_path / "encoder.gguf")
    torch.save({"a": _Code()}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="would run code when read"):
        open_encoder_file(tmp_path / "code.pth")
    assert "ran" not in capsys.readouterr().out
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"not a whole .pth file"):
        open_encoder_file(tmp_path / "old.pth")
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"not a whole .pth file"):
        open_encoder_file(weights)
    (tmp_path / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match=r"not a whole .safetensors file"):
        open_encoder_file(tmp_path / "half.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "says model_type = 't5', but the weights are of 'umt5'"),
        ({"num_heads": 3}, "says num_heads = 3, but the weights are of 4"),
        ({"feed_forward_proj": "relu"}, "says feed_forward_proj = 'relu'"),
        ({"relative_attention_max_distance": 2}, "is a whole number above 2"),
        ({"relative_attention_max_distance": 64.5}, "is a whole number above 2"),
        ({"layer_norm_epsilon": 0.0}, "is a small positive number"),
        ({"layer_norm_epsilon": float("inf")}, "Infinity is no number"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    set_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        UMT5Text.from_pretrained(folder)


def test_folders_that_are_not_whole_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no folder 'tokenizer'"):
        UMT5Text.from_pretrained(tmp_path)
    encoder = folder / "text_encoder"
    for config in ("{", "[1]"):
        (encoder / "config.json").write_text(config)
        with pytest.raises(CheckpointError, match=r"config.json (is not readable JSON|holds a list)"):
            UMT5Text.from_pretrained(folder)
    shutil.copy(encoder / "model.safetensors", encoder / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"has 2 .safetensors files and no index"):
        UMT5Text.from_pretrained(folder)
    shutil.rmtree(encoder)
    with pytest.raises(CheckpointError, match="has no folder 'text_encoder'"):
        UMT5Text.from_pretrained(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"shared.weight": "../model.safetensors"}}, "must be a .safetensors file in the same folder"),
        ({"weight_map": {"shared.weight": "model.pth"}}, "must be a .safetensors file in the same folder"),
        ({"weight_map": {"shared.weight": "model-2.safetensors"}}, r"lacks model-2.safetensors"),
        ({"weight_map": {}}, "has no weight_map"),
    ],
)
def test_an_index_cannot_lead_elsewhere(folder: Path, index: dict[str, Any], message: str) -> None:
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        UMT5Text.from_pretrained(folder)


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    for content in (path.read_text()[:200], '{"model": 1}', "[]"):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=r"is not (the folder of a readable tokenizer|readable JSON)"):
            open_tokenizer(path.parent)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json; give the tokenizer folder"):
        open_tokenizer(path.parent)
