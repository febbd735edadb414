"""A tiny random UMT5 with a tokenizer of pieces, and its files in both published layouts."""

import json
import struct
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import Unigram
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from arl2.text.umt5 import UMT5Text
from arl2.text.umt5_weights import UMT5Weights
from support import generator

WIDTH, LENGTH = 32, 12
SPECIAL = ["<pad>", "</s>", "<unk>"]
WORDS = ["a", "cat", "dog", "runs", "jumps"]


PIECES = [(mark, -9.0) for mark in SPECIAL] + [(f"▁{word}", -3.0) for word in WORDS]
PIECES += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz▁"]


def spiece() -> bytes:
    """The same pieces as a SentencePiece model, written out field by field."""

    def bytes_field(number: int, content: bytes) -> bytes:
        assert len(content) < 128
        return bytes([number << 3 | 2, len(content)]) + content

    def piece(text: str, score: float) -> bytes:
        return bytes_field(1, bytes_field(1, text.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", score))

    unknown = bytes_field(2, bytes([40 << 3 & 0x7F | 0x80, 40 << 3 >> 7, 2]))  # field 40 of the trainer's settings
    return b"".join(piece(*one) for one in PIECES) + unknown


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Pieces of words with an end mark, as UMT5's: known words are one piece, others fall apart into letters."""
    unigram = Tokenizer(Unigram(PIECES, unk_id=2))
    unigram.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    unigram.decoder = decoders.Metaspace()
    unigram.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=unigram, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def tiny_encoder(seed: int = 0, **changes: int) -> UMT5EncoderModel:
    """Two layers; heads x head width differs from the width, so that no axis is taken for another."""
    sizes = {
        "vocab_size": 40,
        "d_model": WIDTH,
        "d_kv": 6,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
    }
    encoder = UMT5EncoderModel(UMT5Config(**{**sizes, **changes})).eval()
    draw = generator(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            spread = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * spread + (parameter.ndim == 1))
        for block in encoder.encoder.block:
            block.layer[0].SelfAttention.relative_attention_bias.weight.mul_(4)
    return encoder


def tiny_text(**options: object) -> UMT5Text:
    """A float32 text part in memory."""
    settings = {"length": LENGTH, "torch_dtype": torch.float32, **options}
    return UMT5Text(tiny_tokenizer(), UMT5Weights.of(tiny_encoder()), **settings)


def original_names(encoder: UMT5EncoderModel) -> dict[str, Tensor]:
    """The encoder's tensors under the names of the original Wan files, written out one by one."""
    tensors = {
        "token_embedding.weight": encoder.shared.weight,
        "norm.weight": encoder.encoder.final_layer_norm.weight,
    }
    for i, block in enumerate(encoder.encoder.block):
        attention, ffn = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
        tensors |= {
            f"blocks.{i}.norm1.weight": block.layer[0].layer_norm.weight,
            f"blocks.{i}.attn.q.weight": attention.q.weight,
            f"blocks.{i}.attn.k.weight": attention.k.weight,
            f"blocks.{i}.attn.v.weight": attention.v.weight,
            f"blocks.{i}.attn.o.weight": attention.o.weight,
            f"blocks.{i}.pos_embedding.embedding.weight": attention.relative_attention_bias.weight,
            f"blocks.{i}.norm2.weight": block.layer[1].layer_norm.weight,
            f"blocks.{i}.ffn.gate.0.weight": ffn.wi_0.weight,
            f"blocks.{i}.ffn.fc1.weight": ffn.wi_1.weight,
            f"blocks.{i}.ffn.fc2.weight": ffn.wo.weight,
        }
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def write_diffusers(folder: Path, *, shard_size: str = "5GB") -> Path:
    """``tokenizer`` and ``text_encoder``, with the tokenizer's settings as the published folder has them."""
    tiny_encoder().save_pretrained(folder / "text_encoder", max_shard_size=shard_size)
    _write_tokenizer(folder / "tokenizer")
    return folder


def write_original(folder: Path) -> tuple[Path, Path]:
    """Weights file and tokenizer folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, tokenizer = folder / "models_t5_umt5-xxl-enc-bf16.pth", folder / "google" / "umt5-xxl"
    torch.save(original_names(tiny_encoder()), weights)
    _write_tokenizer(tokenizer)
    return weights, tokenizer


def _write_tokenizer(folder: Path) -> None:
    tiny_tokenizer().save_pretrained(folder)
    published = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": []}
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 10**30}
    (folder / "tokenizer_config.json").write_text(json.dumps({**published, **marks}))
