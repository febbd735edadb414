"""A model's configuration, read off its tensors' shapes; what they cannot tell comes from a config or the caller."""

import difflib
import math
from typing import Any

from torch import Tensor

from arl2.attention.plan import plan_of
from arl2.errors import CheckpointError, ConfigError

# What no tensor tells, and its value unless a config beside the file or the caller says otherwise.
DEFAULT_HEAD_DIM = 128
OPTIONAL = (
    "num_attention_heads",
    "text_len",
    "block_frames",
    "window",
    "sink",
    "sink_positions",
    "low_rank_alpha",
    "eps",
)

# How other configs spell these.
_SYNONYMS = {
    "num_heads": "num_attention_heads",
    "num_frame_per_block": "block_frames",
    "local_attn_size": "window",
    "sink_size": "sink",
    "lora_alpha": "low_rank_alpha",
}


def config_from_tensors(
    tensors: dict[str, Tensor], beside: dict[str, Any], given: dict[str, Any], where: str
) -> dict[str, Any]:
    """Arguments of ``CausalWanTransformer3DModel`` for tensors under our names.

    Args:
        beside: the ``config.json`` found beside the weights (of any source; keys that do not matter are passed over).
        given: the caller's settings, which win; only those of ``OPTIONAL``.
        where: the file, for messages.

    Raises:
        ConfigError: a setting that is not optional or not known.
        CheckpointError: shapes that no such model has.
    """
    _refuse_other_settings(given)
    told = {**_optional_of(beside), **given}
    patch_embedding = _tensor(tensors, "patch_embedding.weight", 5, where)
    width, in_channels, *patch = patch_embedding.shape
    num_layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("layers."))
    decays = {int(name.split(".")[1]): t for name, t in tensors.items() if name.endswith(".state.A_log")}
    heads = _heads(decays, told, width, where)
    state_rank = _one_rank(tensors, ".state.changes.q.A", set(decays), where)
    ffn_layers = {int(name.split(".")[1]) for name in tensors if name.endswith(".ffn.up.change.A")}
    scope = "all" if ffn_layers - set(decays) else "hybrid"
    ffn_rank = _one_rank(tensors, ".ffn.up.change.A", set(range(num_layers)) if scope == "all" else set(decays), where)
    ffn_name = "layers.0.ffn.up.linear.weight" if 0 in ffn_layers else "layers.0.ffn.up.weight"
    config = {
        "layer_plan": plan_of(sorted(decays), num_layers),
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "ffn_dim": _tensor(tensors, ffn_name, 2, where).shape[0],
        "in_channels": in_channels,
        "out_channels": _tensor(tensors, "head.proj.weight", 2, where).shape[0] // math.prod(patch),
        "patch_size": list(patch),
        "freq_dim": _tensor(tensors, "time_embedder.linear_1.weight", 2, where).shape[1],
        "text_dim": _tensor(tensors, "text_embedder.linear_1.weight", 2, where).shape[1],
        "state_rank": state_rank,
        "ffn_rank": ffn_rank,
        "ffn_rank_layers": scope,
    }
    return {**config, **{key: value for key, value in told.items() if key in OPTIONAL and key != "num_attention_heads"}}


def _refuse_other_settings(given: dict[str, Any]) -> None:
    for key in given:
        if key not in OPTIONAL:
            near = difflib.get_close_matches(key, OPTIONAL, n=1)
            hint = f"did you mean {near[0]}?" if near else f"accepted are {', '.join(OPTIONAL)}."
            raise ConfigError(
                f"{key} cannot be set when loading, since the file decides it or nothing knows it; {hint}"
            )


def _optional_of(config: dict[str, Any]) -> dict[str, Any]:
    found = {_SYNONYMS.get(key, key): value for key, value in config.items()}
    told = {key: found[key] for key in OPTIONAL if found.get(key) is not None}
    if told.get("window") == -1:  # the published way to say "no window"
        del told["window"]
        told.pop("sink", None)
    return told


def _heads(decays: dict[int, Tensor], told: dict[str, Any], width: int, where: str) -> int:
    if decays:
        counts = {t.numel() for t in decays.values()}
        heads = counts.pop()
        if counts or heads == 0 or width % heads:
            raise CheckpointError(f"{where}: the A_log tensors do not agree on a number of heads for width {width}.")
        if told.get("num_attention_heads", heads) != heads:
            raise CheckpointError(
                f"{where} has {heads} heads, but {told['num_attention_heads']} were asked for; leave the number out."
            )
        return heads
    heads = told.get("num_attention_heads", width // DEFAULT_HEAD_DIM)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise CheckpointError(
            f"{where} does not tell its number of heads, and width {width} is not {heads} equal heads; "
            "give num_attention_heads."
        )
    return heads


def _one_rank(tensors: dict[str, Tensor], suffix: str, expected: set[int], where: str) -> int:
    """The rank of the low-rank changes ending in ``suffix``; all expected layers have it, or none does."""
    ranks = {int(name.split(".")[1]): t.shape[-1] for name, t in tensors.items() if name.endswith(suffix)}
    if not ranks:
        return 0
    if set(ranks) != expected or len(set(ranks.values())) != 1:
        raise CheckpointError(
            f"{where}: low-rank changes stand on layers {sorted(ranks)} with ranks {sorted(set(ranks.values()))}; "
            f"one rank on layers {sorted(expected)} is needed."
        )
    return next(iter(ranks.values()))


def _tensor(tensors: dict[str, Tensor], name: str, dims: int, where: str) -> Tensor:
    if name not in tensors:
        raise CheckpointError(
            f"{where} lacks {name}, without which the model's sizes are unknown; the file is not whole."
        )
    if tensors[name].dim() != dims:
        raise CheckpointError(f"{where}: {name} is {list(tensors[name].shape)}; {dims} dimensions are needed.")
    return tensors[name]
