"""ComfyUI's UMT5 file brings its tokenizer along: the same ids as from the tokenizer's folder."""

import contextlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from arl2.errors import CheckpointError
from arl2.text.umt5 import UMT5Text
from arl2.text.umt5_files import holds_tokenizer
from arl2.text.umt5_pieces import tokenizer_of_pieces
from text.tiny_umt5 import spiece, tiny_encoder, tiny_tokenizer

PROMPTS = ["a cat runs", "a  dog   jumps", "catdog", "x", "a cat ÄÖ 犬 runs", "a </s> cat", "runs "]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_those_of_the_tokenizer(prompt: str) -> None:
    assert tokenizer_of_pieces(spiece(), "here")(prompt)["input_ids"] == tiny_tokenizer()(prompt)["input_ids"]


def test_the_model_is_read_as_protobuf_writes_it() -> None:
    """The classes that transformers has for this format read the same bytes, and give back the same tokenizer."""
    protobuf = pytest.importorskip("google.protobuf", reason="another reader of the format")
    assert protobuf is not None
    from transformers.utils import sentencepiece_model_pb2_new as format_of

    model = format_of.ModelProto()
    model.ParseFromString(spiece())
    assert [piece.piece for piece in model.pieces][:4] == ["<pad>", "</s>", "<unk>", "▁a"]
    assert model.trainer_spec.unk_id == 2
    model.trainer_spec.vocab_size = 300_000  # fields that are not read
    model.normalizer_spec.name = "identity"
    again = tokenizer_of_pieces(model.SerializeToString(), "here")
    assert all(again(one)["input_ids"] == tiny_tokenizer()(one)["input_ids"] for one in PROMPTS)


def test_a_file_with_its_tokenizer_inside(tmp_path: Path) -> None:
    tensors = {name: x.clone() for name, x in tiny_encoder().state_dict().items() if "embed_tokens" not in name}
    path = tmp_path / "umt5.safetensors"
    save_file(tensors, path)
    assert not holds_tokenizer(path)
    save_file({**tensors, "spiece_model": torch.frombuffer(bytearray(spiece()), dtype=torch.uint8)}, path)
    assert holds_tokenizer(path)
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    inside, beside = (UMT5Text.from_wan_original(path, place) for place in (None, tmp_path / "tokenizer"))
    assert torch.equal(inside.encode(["a cat runs"]), beside.encode(["a cat runs"]))


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, len(spiece()) - 1), change=st.integers(0, 255))
def test_a_damaged_one_is_refused_or_read(cut: int, change: int) -> None:
    for content in (spiece()[:cut], spiece()[:cut] + bytes([change]) + spiece()[cut + 1 :]):
        with contextlib.suppress(CheckpointError):
            tokenizer_of_pieces(content, "umt5.safetensors")


def test_one_that_is_cut_is_named() -> None:
    for content in (b"", spiece()[:40], spiece()[:-1]):
        with pytest.raises(CheckpointError, match=r"^umt5 holds no readable tokenizer in spiece_model .*; download it"):
            tokenizer_of_pieces(content, "umt5")
