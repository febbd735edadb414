"""The tensors of a UMT5 encoder: their names in both published layouts, and the sizes that their shapes tell.

The layouts are transformers' (``encoder.block.0...``, the ``text_encoder`` of a diffusers folder) and the original
one of Wan 2.1 (``blocks.0...``, ``models_t5_umt5-xxl-enc-bf16.pth``). Here everything goes by transformers' names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from arl2.errors import CheckpointError
from arl2.files.exact import require_exact

EMBEDDING = "shared.weight"
TIED_EMBEDDING = "encoder.embed_tokens.weight"
"""The same tensor again: transformers gives it two names, and files have either or both."""

_WAN_WHOLE = {"shared": "token_embedding", "encoder.final_layer_norm": "norm"}
_WAN_LAYER = {
    "layer.0.layer_norm": "norm1",
    "layer.0.SelfAttention.q": "attn.q",
    "layer.0.SelfAttention.k": "attn.k",
    "layer.0.SelfAttention.v": "attn.v",
    "layer.0.SelfAttention.o": "attn.o",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}


@dataclass(frozen=True)
class UMT5Sizes:
    """Sizes of an encoder, under the names of transformers' config."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int


def wan_names(layers: int) -> dict[str, str]:
    """The original name of every tensor, by transformers' name."""
    modules = dict(_WAN_WHOLE)
    for layer in range(layers):
        modules |= {f"encoder.block.{layer}.{ours}": f"blocks.{layer}.{wan}" for ours, wan in _WAN_LAYER.items()}
    return {f"{ours}.weight": f"{wan}.weight" for ours, wan in modules.items()}


class Encoder(NamedTuple):
    """Exactly one encoder: its sizes, its tensors by transformers' names, and the scales of those in 8 bits."""

    sizes: UMT5Sizes
    tensors: dict[str, Tensor]
    scales: dict[str, Tensor]


def translate_encoder(tensors: Mapping[str, Tensor], where: str, scales: Mapping[str, Tensor] | None = None) -> Encoder:
    """Sizes and tensors of exactly one encoder, whichever layout it has.

    Args:
        tensors: by the file's names.
        where: what errors call the file.
        scales: of tensors in 8 bits, by the file's names.

    Returns:
        Tensors and scales by transformers' names, the embedding once.

    Raises:
        CheckpointError: tensors are missing, unexpected, or of a wrong shape; named as in the file.
    """
    original = "token_embedding.weight" in tensors
    prefix = r"blocks\.(\d+)\." if original else r"encoder\.block\.(\d+)\."
    layers = len({found[1] for name in tensors if (found := re.match(prefix, name))})
    names = wan_names(layers)
    in_file = names if original else {name: name for name in names}
    if not original:
        tensors = _embedding_once(tensors, where)
    sizes = _read_sizes({name: tensors[key] for name, key in in_file.items() if key in tensors}, layers, where)
    expected = {in_file[name]: shape for name, shape in _shapes(sizes).items()}
    require_exact(expected, tensors, where=where, what="UMT5 encoder")
    ours = {theirs: name for name, theirs in in_file.items()}
    return Encoder(
        sizes,
        {name: tensors[in_file[name]] for name in names},
        {ours[name]: scale for name, scale in (scales or {}).items() if name in ours},
    )


def _embedding_once(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    once = {name: tensor for name, tensor in tensors.items() if name != TIED_EMBEDDING}
    tied = tensors.get(TIED_EMBEDDING)
    if tied is None:
        return once
    shared = once.setdefault(EMBEDDING, tied)
    if shared.dtype != tied.dtype or not shared.equal(tied):
        raise CheckpointError(f"{where}: {EMBEDDING} and {TIED_EMBEDDING} differ; they are one tensor by two names.")
    return once


def _read_sizes(tensors: Mapping[str, Tensor], layers: int, where: str) -> UMT5Sizes:
    first = "encoder.block.0.layer."
    telling = {
        EMBEDDING: 2,
        f"{first}0.SelfAttention.relative_attention_bias.weight": 2,
        f"{first}0.SelfAttention.q.weight": 2,
        f"{first}1.DenseReluDense.wi_0.weight": 2,
    }
    for name, dimensions in telling.items():
        if name not in tensors or tensors[name].ndim != dimensions:
            raise CheckpointError(
                f"{where} has no matrix {name!r} (in the original layout {wan_names(1)[name]!r}), so it is no whole "
                "UMT5 encoder; give the text encoder of Wan 2.1."
            )
    embedding, bias, query, gate = (tensors[name].shape for name in telling)
    if query[0] % bias[1] or bias[0] < 4 or bias[0] % 2:
        raise CheckpointError(
            f"{where} has position biases {list(bias)} and queries {list(query)}: heads must divide the queries' rows, "
            "and position buckets are even and at least 4."
        )
    return UMT5Sizes(
        vocab_size=embedding[0],
        d_model=embedding[1],
        d_kv=query[0] // bias[1],
        d_ff=gate[0],
        num_layers=layers,
        num_heads=bias[1],
        relative_attention_num_buckets=bias[0],
    )


def _shapes(sizes: UMT5Sizes) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by transformers' name."""
    width, inner, ffn = sizes.d_model, sizes.num_heads * sizes.d_kv, sizes.d_ff
    ends = {
        "shared": (sizes.vocab_size, width),
        "relative_attention_bias": (sizes.relative_attention_num_buckets, sizes.num_heads),
        **dict.fromkeys(("q", "k", "v"), (inner, width)),
        "o": (width, inner),
        **dict.fromkeys(("wi_0", "wi_1"), (ffn, width)),
        "wo": (width, ffn),
        **dict.fromkeys(("layer_norm", "final_layer_norm"), (width,)),
    }
    return {name: ends[name.split(".")[-2]] for name in wan_names(sizes.num_layers)}
