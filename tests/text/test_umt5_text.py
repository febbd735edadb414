"""Wan's text part: the maths of its encoder, rows and cuts, both layouts, saving, dtypes and devices."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import UMT5EncoderModel

from arl2.errors import CheckpointError, ConfigError, NonFiniteError
from arl2.text.interface import TextPart
from arl2.text.umt5 import UMT5Text
from arl2.text.umt5_weights import EncoderPlace, UMT5Weights
from text.tiny_umt5 import (
    LENGTH,
    WIDTH,
    original_names,
    tiny_encoder,
    tiny_text,
    tiny_tokenizer,
    write_diffusers,
    write_original,
)

PROMPTS = ["a cat runs", "dog jumps", "a bird"]


@pytest.fixture(scope="module")
def text() -> UMT5Text:
    return tiny_text()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_diffusers(tmp_path_factory.mktemp("diffusers"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_original(tmp_path_factory.mktemp("original"))


def plain_forward(prompts: list[str], length: int = LENGTH) -> Tensor:
    """As diffusers computes it: padded, masked, rows past the end set to zero."""
    rows = tiny_tokenizer()(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = tiny_encoder()(rows["input_ids"], rows["attention_mask"]).last_hidden_state
    return hidden * rows["attention_mask"][..., None]


def naive_encoder(tensors: dict[str, Tensor], tokens: list[int], heads: int, buckets: int) -> Tensor:
    """UMT5 from the tensors of the original layout in float64, position by position where it can be."""
    w = {name.removesuffix(".weight"): tensor.double() for name, tensor in tensors.items()}

    def norm(x: Tensor, scale: Tensor) -> Tensor:
        return scale * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def bucket(distance: int) -> int:
        half, exact = buckets // 2, buckets // 4
        away = abs(distance)
        if away >= exact:
            away = min(half - 1, exact + int(math.log(away / exact) / math.log(128 / exact) * (half - exact)))
        return away + (half if distance > 0 else 0)

    n = len(tokens)
    x = w["token_embedding"][tokens]
    for i in range(sum(name.endswith("attn.q") for name in w)):
        layer = {name.removeprefix(f"blocks.{i}."): t for name, t in w.items() if name.startswith(f"blocks.{i}.")}
        h = norm(x, layer["norm1"])
        q, k, v = (torch.stack((h @ layer[f"attn.{one}"].T).chunk(heads, -1)) for one in "qkv")
        table = layer["pos_embedding.embedding"]
        bias = torch.stack([torch.stack([table[bucket(key - query)] for key in range(n)]) for query in range(n)])
        attended = torch.softmax(q @ k.mT + bias.permute(2, 0, 1), -1) @ v
        x = x + torch.cat(list(attended), -1) @ layer["attn.o"].T
        h = norm(x, layer["norm2"])
        gate = torch.nn.functional.gelu(h @ layer["ffn.gate.0"].T, approximate="tanh")
        x = x + (gate * (h @ layer["ffn.fc1"].T)) @ layer["ffn.fc2"].T
    return norm(x, w["norm"])


def test_rows_equal_a_padded_masked_forward_and_end_in_zeros(text: UMT5Text) -> None:
    encoded = text.encode(PROMPTS)
    assert isinstance(text, TextPart)
    assert encoded.shape == (3, LENGTH, WIDTH)
    assert (text.length, text.width) == (LENGTH, WIDTH)
    torch.testing.assert_close(encoded, plain_forward(PROMPTS), rtol=1e-5, atol=1e-5)
    for row, tokens in zip(encoded, (4, 3, 7), strict=True):
        assert (row[:tokens].norm(dim=1) > 0.1).all()
        assert row[tokens:].abs().max() == 0
    assert not encoded.requires_grad


def test_the_maths_is_that_of_the_original_layout(original: tuple[Path, Path]) -> None:
    prompt = "a cat runs a dog jumps zz"
    tokens = tiny_tokenizer()(prompt)["input_ids"]
    expected = naive_encoder(original_names(tiny_encoder()), tokens, heads=4, buckets=8)
    text = UMT5Text.from_wan_original(*original, torch_dtype=torch.float32)
    encoded = text.encode([prompt])[0, : len(tokens)].double()
    assert (encoded - expected).norm() / expected.norm() < 1e-6


def test_a_prompt_does_not_depend_on_its_batch(text: UMT5Text) -> None:
    together = text.encode([*PROMPTS, PROMPTS[0]])
    for row, prompt in zip(together, [*PROMPTS, PROMPTS[0]], strict=True):
        assert torch.equal(row, text.encode([prompt])[0])
    assert text.encode([]).shape == (0, LENGTH, WIDTH)


def test_prompts_are_cleaned_before_they_are_split(text: UMT5Text) -> None:
    assert torch.equal(text.encode(["  a\ncat&nbsp; runs\t"]), text.encode(["a cat runs"]))


def test_a_long_prompt_is_cut_and_what_is_lost_is_said(text: UMT5Text, caplog: pytest.LogCaptureFixture) -> None:
    kept = "a cat runs a dog runs a cat runs a dog"  # 11 tokens and the end mark
    encoded = text.encode([f"{kept} jumps now"])
    assert torch.equal(encoded, text.encode([kept]))
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "17 tokens and 12 are seen; cut off: 'jumps now'." in record.message
    caplog.clear()
    text.encode([kept + " jumps" * 50])
    assert "and 99 characters more" in caplog.records[0].message
    assert len(caplog.records[0].message) < 300


@pytest.mark.parametrize("prompt", ["", " \n\t ", "&nbsp;", "\x00"])
def test_empty_prompts_are_refused(text: UMT5Text, prompt: str) -> None:
    with pytest.raises(ConfigError, match="is empty or white space; say what the video shows"):
        text.encode(["a cat", prompt])


@pytest.mark.parametrize(("prompt", "place"), [("a cat \ud83d", 6), ("\udc31 cat", 0), ("a\udc31\ud83d", 1)])
def test_half_a_surrogate_pair_is_refused(text: UMT5Text, prompt: str, place: int) -> None:
    with pytest.raises(ConfigError, match=f"Character {place} of the prompt is U\\+D"):
        text.encode([prompt])


def test_both_layouts_give_equal_embeddings(published: Path, original: tuple[Path, Path], text: UMT5Text) -> None:
    ours = UMT5Text.from_pretrained(published, torch_dtype=torch.float32)
    wan = UMT5Text.from_wan_original(*original, torch_dtype=torch.float32)
    assert (ours.length, wan.length) == (512, 512)
    assert not ours.loaded
    encoded = ours.encode(PROMPTS)
    assert torch.equal(encoded, wan.encode(PROMPTS))
    assert torch.equal(encoded[:, :LENGTH], text.encode(PROMPTS))
    assert encoded.abs().sum(dim=2)[:, LENGTH:].max() == 0
    assert ours.loaded
    assert ours.weights.fingerprint(torch.float32) == wan.weights.fingerprint(torch.float32)


def test_shards_are_put_together(tmp_path: Path, published: Path) -> None:
    write_diffusers(tmp_path, shard_size="20KB")
    assert len(list((tmp_path / "text_encoder").glob("*.safetensors"))) > 1
    one, other = (UMT5Text.from_pretrained(folder) for folder in (tmp_path, published))
    assert torch.equal(one.encode(PROMPTS), other.encode(PROMPTS))


def test_saving_and_loading_changes_nothing(tmp_path: Path, original: tuple[Path, Path], text: UMT5Text) -> None:
    text.save_pretrained(tmp_path / "one")
    loaded = UMT5Text.from_pretrained(tmp_path / "one")
    assert (loaded.length, loaded.dtype) == (LENGTH, torch.float32)
    assert torch.equal(loaded.encode(PROMPTS), text.encode(PROMPTS))
    wan = UMT5Text.from_wan_original(*original, length=5)
    wan.save_pretrained(tmp_path / "two")
    again = UMT5Text.from_pretrained(tmp_path / "two")
    assert (again.length, again.dtype) == (5, torch.bfloat16)
    assert torch.equal(again.encode(PROMPTS), wan.encode(PROMPTS))
    assert UMT5Text.from_pretrained(tmp_path / "two", length=7).length == 7


def test_a_folder_in_use_is_not_written_over(published: Path) -> None:
    loaded = UMT5Text.from_pretrained(published)
    with pytest.raises(CheckpointError, match="save it to another folder"):
        loaded.save_pretrained(published)
    assert loaded.encode(PROMPTS).isfinite().all()


def test_bfloat16_stays_near_float32(published: Path, text: UMT5Text) -> None:
    narrow = UMT5Text.from_pretrained(published, length=LENGTH)
    assert narrow.dtype == torch.bfloat16
    encoded, exact = narrow.encode(PROMPTS), text.encode(PROMPTS)
    assert encoded.dtype == torch.bfloat16
    assert 1e-4 < (encoded.float() - exact).norm() / exact.norm() < 2e-2


def test_float16_is_refused_and_a_cast_to_it_passes_by(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"not in torch.float16; choose one"):
        tiny_text(torch_dtype=torch.float16)
    text = tiny_text().half()
    assert text.dtype == torch.bfloat16
    assert text.encode(["a cat"]).dtype == torch.bfloat16
    assert "not in torch.float16; it stays in torch.bfloat16" in caplog.text


def test_a_cast_and_back_loses_nothing(text: UMT5Text) -> None:
    moved = tiny_text()
    assert moved.to(torch.bfloat16).encode(["a cat"]).dtype == torch.bfloat16
    assert torch.equal(moved.float().encode(PROMPTS), text.encode(PROMPTS))


@pytest.mark.parametrize("keep", [False, True])
def test_another_device_holds_the_encoder_only_as_long_as_asked(keep: bool) -> None:
    cpu, other = torch.device("cpu"), torch.device("meta")
    place = EncoderPlace(UMT5Weights.of(tiny_encoder()))
    tokens = torch.tensor([[3, 4, 1]])
    with place.encoder(device=cpu, dtype=torch.float32, keep=keep) as encoder:
        before = encoder(tokens).last_hidden_state
    assert place.loaded
    with place.encoder(device=other, dtype=torch.float32, keep=keep) as encoder:
        assert {parameter.device for parameter in encoder.parameters()} == {other}
        first = encoder
    assert place.loaded == keep
    with place.encoder(device=other, dtype=torch.float32, keep=keep) as encoder:
        assert (encoder is first) == keep
    with place.encoder(device=cpu, dtype=torch.float32, keep=keep) as encoder:
        assert torch.equal(encoder(tokens).last_hidden_state, before)


def test_a_device_is_let_go_after_an_error() -> None:
    place = EncoderPlace(UMT5Weights.of(tiny_encoder()))
    with (
        pytest.raises(RuntimeError, match="stop"),
        place.encoder(device=torch.device("meta"), dtype=torch.float32, keep=False),
    ):
        raise RuntimeError("stop")
    assert not place.loaded


def test_threads_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    text, built = tiny_text(), []
    long = " ".join(["cat"] * (LENGTH + 3))  # cutting it changes the tokenizer's settings for a while
    expected = {prompt: text.encode([prompt]) for prompt in (*PROMPTS, long)}
    shared = tiny_text()
    build = UMT5Weights.build

    def slowly(self: UMT5Weights, **how: Any) -> UMT5EncoderModel:
        built.append(1)
        time.sleep(0.05)  # the other threads come meanwhile
        return build(self, **how)

    monkeypatch.setattr(UMT5Weights, "build", slowly)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda prompt: (prompt, shared.encode([prompt])), list(expected) * 10))
    assert all(torch.equal(rows, expected[prompt]) for prompt, rows in found)
    assert built == [1]


def test_moving_the_part_is_remembered_before_anything_is_loaded(published: Path) -> None:
    text = UMT5Text.from_pretrained(published).to("meta", torch.float32)
    assert (text.device.type, text.dtype, text.loaded) == ("meta", torch.float32, False)
    assert list(text.parameters()) == []


def test_weights_in_memory_are_shared_and_the_embedding_is_one() -> None:
    encoder = tiny_encoder()
    built = UMT5Weights.of(encoder).build(device=torch.device("cpu"), dtype=torch.float32)
    assert built.shared.weight.data_ptr() == encoder.shared.weight.data_ptr()
    assert built.shared.weight is built.encoder.embed_tokens.weight
    assert not any(parameter.requires_grad for parameter in built.parameters())
    assert not built.training


@pytest.mark.parametrize("name", ["shared.weight", "encoder.block.1.layer.1.DenseReluDense.wo.weight"])
def test_the_fingerprint_tells_weights_and_dtypes_apart(name: str) -> None:
    weights, changed = UMT5Weights.of(tiny_encoder()), UMT5Weights.of(tiny_encoder())
    narrow = {key: tensor.bfloat16() for key, tensor in weights.tensors.items()}
    prints = {dtype: weights.fingerprint(dtype) for dtype in (torch.float32, torch.bfloat16)}
    assert prints[torch.float32] != prints[torch.bfloat16]
    assert UMT5Weights(weights.config, narrow).fingerprint(torch.bfloat16) == prints[torch.bfloat16]
    assert UMT5Weights(weights.config, narrow).fingerprint(torch.float32) != prints[torch.float32]
    changed.tensors[name][-1] += 1
    assert changed.fingerprint(torch.float32) != prints[torch.float32]


def test_broken_weights_are_found_at_the_first_prompt() -> None:
    encoder = tiny_encoder()
    with torch.no_grad():
        encoder.encoder.final_layer_norm.weight[0] = math.nan
    text = UMT5Text(tiny_tokenizer(), UMT5Weights.of(encoder), length=LENGTH)
    with pytest.raises(NonFiniteError, match="gave NaN or infinity for a prompt of 3 tokens"):
        text.encode(["a cat"])


def test_impossible_settings_are_refused(tmp_path: Path, text: UMT5Text) -> None:
    with pytest.raises(ConfigError, match="text length is 1; give at least 2"):
        tiny_text(length=1)
    with pytest.raises(CheckpointError, match=r"ids up to 34 and the encoder 30 of them"):
        UMT5Text(tiny_tokenizer(), UMT5Weights.of(tiny_encoder(vocab_size=30)))
    text.save_pretrained(tmp_path)
    settings = tmp_path / "umt5_text.json"
    good = json.loads(settings.read_text())
    for change in ({"length": "12"}, {"length": True}, {"dtype": "float16"}, {"dtype": ["float32"]}, {"words": 3}):
        settings.write_text(json.dumps({**good, **change}))
        with pytest.raises(CheckpointError, match="must have a whole number 'length' and a 'dtype' of bfloat16"):
            UMT5Text.from_pretrained(tmp_path)
