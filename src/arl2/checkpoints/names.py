"""Tensor names of the published layouts, beside ours: tables, one line a module, for both directions.

``original`` is Wan 2.1's own naming, which CausVid, Self Forcing, Causal Forcing and ARL2 keep (behind ``model.``) and
to which ARL2 adds names of its own: those of a kind of attention are in its spec. In the published names a layer is
``blocks.i``.
"""

import functools
from collections.abc import Callable

from torch import Tensor

from arl2.attention.kind import AttentionSpec, PublishedName
from arl2.attention.plan import all_kinds

_TOP = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "text_embedder.linear_1",
    "text_embedding.2": "text_embedder.linear_2",
    "time_embedding.0": "time_embedder.linear_1",
    "time_embedding.2": "time_embedder.linear_2",
    "time_projection.1": "time_embedder.projection",
    "head.head": "head.proj",
}

_ATTENTION = {
    "q": "shared.to_q",
    "k": "shared.to_k",
    "v": "shared.to_v",
    "o": "shared.to_out",
    "norm_q": "shared.norm_q",
    "norm_k": "shared.norm_k",
}

_DIFFUSERS_TOP = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
}

_DIFFUSERS_LAYER = {
    **{
        f"{theirs}.{a}": f"{ours}.{b}"
        for theirs, ours in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for a, b in (
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "o"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
        )
    },
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}


def _drop_first(tensor: Tensor) -> Tensor:
    """``[1, n, d]`` -> ``[n, d]``; another shape is left for the strict shape check to name."""
    return tensor[0] if tensor.dim() == 3 and tensor.shape[0] == 1 else tensor


def _add_first(tensor: Tensor) -> Tensor:
    return tensor[None]


def original_names(num_layers: int) -> dict[str, PublishedName]:
    """Every name that a file in the original or ARL2 naming may hold, for a model of ``num_layers`` layers."""
    return _original_names(num_layers, all_kinds())


@functools.cache
def _original_names(num_layers: int, kinds: tuple[type[AttentionSpec], ...]) -> dict[str, PublishedName]:
    table: dict[str, PublishedName] = {}

    def add(original: str, ours: str, *shapes: Callable[[Tensor], Tensor]) -> None:
        table[original] = PublishedName(original, ours, *shapes)

    def add_module(original: str, ours: str) -> None:
        for part in ("weight", "bias"):
            add(f"{original}.{part}", f"{ours}.{part}")

    for original, ours in _TOP.items():
        add_module(original, ours)
    add("head.modulation", "head.modulation", _drop_first, _add_first)
    for i in range(num_layers):
        theirs, mine = f"blocks.{i}", f"layers.{i}"
        add(f"{theirs}.modulation", f"{mine}.modulation", _drop_first, _add_first)
        add_module(f"{theirs}.norm3", f"{mine}.cross_norm")
        for a, b in (("self_attn", "self_attention"), ("cross_attn", "cross_attention")):
            for original, ours in _ATTENTION.items():
                add_module(f"{theirs}.{a}.{original}", f"{mine}.{b}.{ours}")
        for name in (name for kind in kinds for name in kind.published_names or ()):
            add(
                f"{theirs}.self_attn.{name.original}",
                f"{mine}.self_attention.{name.ours}",
                name.to_ours,
                name.to_original,
            )
        for a, b in (("ffn.0", "ffn.up"), ("ffn.2", "ffn.down")):
            add_module(f"{theirs}.{a}", f"{mine}.{b}")
            add_module(f"{theirs}.{a}.linear", f"{mine}.{b}.linear")
            for part in "AB":
                add(f"{theirs}.{a}.lora_{part}", f"{mine}.{b}.change.{part}")
    return table


def is_converted(name: str) -> bool:
    """Whether a name in the original naming is of something that a conversion has added."""
    added = (own.original for kind in all_kinds() for own in kind.published_names or ())
    return ".lora_" in name or any(name.endswith(f".self_attn.{own}") for own in added)


@functools.cache
def diffusers_names(num_layers: int) -> dict[str, str]:
    """diffusers' names of Wan 2.1 -> the original ones."""
    table = {"scale_shift_table": "head.modulation"}
    for theirs, original in _DIFFUSERS_TOP.items():
        table |= {f"{theirs}.{part}": f"{original}.{part}" for part in ("weight", "bias")}
    for i in range(num_layers):
        table[f"blocks.{i}.scale_shift_table"] = f"blocks.{i}.modulation"
        for theirs, original in _DIFFUSERS_LAYER.items():
            table |= {f"blocks.{i}.{theirs}.{part}": f"blocks.{i}.{original}.{part}" for part in ("weight", "bias")}
    return table
