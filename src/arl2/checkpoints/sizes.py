"""A model's configuration, read off its tensors' shapes; what they cannot tell comes from a config or the caller."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from arl2.attention.kind import AttentionSpec
from arl2.attention.lora import common_rank
from arl2.attention.plan import BASELINE, all_kinds, kind_of
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
    tensors: dict[str, Tensor], stored: dict[str, Any], given: dict[str, Any], where: str
) -> dict[str, Any]:
    """Arguments of ``CausalWanTransformer3DModel`` for tensors under our names.

    Args:
        stored: the ``config.json`` found beside the weights (of any source; keys that do not matter are passed over).
        given: the caller's settings, which win; only those of ``OPTIONAL``.
        where: the file, for messages.

    Raises:
        ConfigError: a setting that is not optional or not known.
        CheckpointError: shapes that no such model has.
    """
    _refuse_other_settings(given)
    told = {**_optional_of(stored), **given}
    patch_embedding = _tensor(tensors, "patch_embedding.weight", 5, where)
    width, in_channels, *patch = patch_embedding.shape
    num_layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("layers."))
    layers: dict[int, dict[str, Tensor]] = {i: {} for i in range(num_layers)}
    ffn_ranks: dict[int, int] = {}
    for name, tensor in tensors.items():
        top, _, rest = name.partition(".")
        i, _, inner = rest.partition(".")
        if top == "layers" and inner.startswith("self_attention."):
            layers[int(i)][inner.removeprefix("self_attention.")] = tensor
        elif top == "layers" and inner == "ffn.up.change.A":
            ffn_ranks[int(i)] = tensor.shape[-1]
    kinds = [_kind(own) for own in layers.values()]
    found = {
        key: value for kind in dict.fromkeys(kinds) for key, value in kind.settings_of(layers, width, where).items()
    }
    heads = _heads(found.pop("num_attention_heads", None), told, width, where)
    beside = {i for i, kind in enumerate(kinds) if kind.lora_in_ffn}
    scope = "all" if set(ffn_ranks) - beside else "hybrid"
    ffn_rank = common_rank(ffn_ranks, set(layers) if scope == "all" else beside, where)
    ffn_name = "layers.0.ffn.up.linear.weight" if 0 in ffn_ranks else "layers.0.ffn.up.weight"
    config = {
        "layer_plan": "".join(kind.letter for kind in kinds),
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "ffn_dim": _tensor(tensors, ffn_name, 2, where).shape[0],
        "in_channels": in_channels,
        "out_channels": _tensor(tensors, "head.proj.weight", 2, where).shape[0] // math.prod(patch),
        "patch_size": list(patch),
        "freq_dim": _tensor(tensors, "time_embedder.linear_1.weight", 2, where).shape[1],
        "text_dim": _tensor(tensors, "text_embedder.linear_1.weight", 2, where).shape[1],
        "state_rank": 0,
        "ffn_rank": ffn_rank,
        "ffn_rank_layers": scope,
        **found,
    }
    return {**config, **{key: value for key, value in told.items() if key in OPTIONAL and key != "num_attention_heads"}}


def require_text_to_video(config: Mapping[str, Any], where: str) -> None:
    """Raise ``CheckpointError`` for a transformer that takes other channels than it gives."""
    taken, given = config.get("in_channels"), config.get("out_channels")
    if taken != given:
        raise CheckpointError(
            f"{where} takes latents of {taken} channels and gives {given}: it is an image-to-video or editing model, "
            "which is given pictures beside the noise; only text-to-video transformers load."
        )


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


def _heads(found: object, told: dict[str, Any], width: int, where: str) -> int:
    """As the layers tell (``found``, or None), or as was given, or of the usual size."""
    given = told.get("num_attention_heads")
    if isinstance(found, int):
        if given not in (None, found):
            raise CheckpointError(f"{where} has {found} heads, but {given} were asked for; leave the number out.")
        return found
    heads = width // DEFAULT_HEAD_DIM if given is None else given
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise CheckpointError(
            f"{where} does not tell its number of heads, and width {width} is not {heads} equal heads; "
            "give num_attention_heads."
        )
    return heads


def _kind(tensors: Mapping[str, Tensor]) -> type[AttentionSpec]:
    """What kind of self-attention these tensors are of."""
    return next((kind for kind in all_kinds() if kind.recognised_by in tensors), kind_of(BASELINE))


def _tensor(tensors: dict[str, Tensor], name: str, dims: int, where: str) -> Tensor:
    if name not in tensors:
        raise CheckpointError(
            f"{where} lacks {name}, without which the model's sizes are unknown; the file is not whole."
        )
    if tensors[name].dim() != dims:
        raise CheckpointError(f"{where}: {name} is {list(tensors[name].shape)}; {dims} dimensions are needed.")
    return tensors[name]
