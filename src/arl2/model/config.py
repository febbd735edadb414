"""What a configuration may hold, and what it says about each layer."""

import math
from collections.abc import Mapping
from typing import Any

from arl2.attention.horizon import check_horizon
from arl2.attention.kind import AttentionSpec
from arl2.attention.plan import kind_of, parse_plan
from arl2.attention.state_form import StateForm
from arl2.errors import ConfigError
from arl2.geometry import SINK_POSITIONS

_MOST_LAYERS = 1000
_WHOLE_NUMBERS = {
    **dict.fromkeys(("num_attention_heads", "attention_head_dim", "ffn_dim", "in_channels", "out_channels"), 1),
    **dict.fromkeys(("freq_dim", "text_dim", "text_len", "block_frames"), 1),
    **dict.fromkeys(("sink", "state_rank", "ffn_rank"), 0),
}


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse what cannot be, in one sentence, before torch does in many."""
    plan, patch = config["layer_plan"], config["patch_size"]
    if len(plan) > _MOST_LAYERS:
        raise ConfigError(f"The layer plan has {len(plan):,} letters; at most {_MOST_LAYERS} are accepted.")
    parse_plan(plan, len(plan))
    if not plan:
        raise ConfigError("The layer plan is empty; it needs one letter a layer, such as HHSH.")
    if len(patch) != 3 or patch[0] != 1 or min(patch) < 1:
        raise ConfigError(f"The patch size {list(patch)!r:.80} must be three numbers from 1, the first (frames) 1.")
    for name, least in _WHOLE_NUMBERS.items():
        value = config[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name} is {value!r:.80}; it must be a whole number from {least}.")
    if config["attention_head_dim"] % 2 or config["freq_dim"] % 2:
        raise ConfigError(
            f"Head size {config['attention_head_dim']} and freq_dim {config['freq_dim']} must be even: "
            "rotations turn pairs."
        )
    window, sink, block = config["window"], config["sink"], config["block_frames"]
    if window is None and sink:
        raise ConfigError(f"sink is {sink} but there is no window to keep it in; give a window, or sink 0.")
    if window is not None and (not isinstance(window, int) or window < sink + block):
        raise ConfigError(
            f"A window of {window!r} frames cannot hold {sink} sink frames and a block of {block}; "
            f"use at least {sink + block}, or None for the whole past."
        )
    check_sink_positions(config["sink_positions"])
    alpha = config["low_rank_alpha"]
    if alpha is not None and (
        isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf
    ):
        raise ConfigError(f"low_rank_alpha is {alpha!r:.80}; it must be a number above 0, or None for twice the rank.")
    if config["ffn_rank_layers"] not in ("hybrid", "all"):
        raise ConfigError(f'ffn_rank_layers is {config["ffn_rank_layers"]!r:.80}; it must be "hybrid" or "all".')
    StateForm.of_config(config)
    check_horizon(config["state_horizon"], block)
    if not 0 < config["eps"] < 1:
        raise ConfigError(f"eps is {config['eps']!r:.80}; it must be a small positive number, such as 1e-6.")


def check_sink_positions(value: object) -> None:
    """Refuse anything but the known positions of sinks."""
    if value not in SINK_POSITIONS:
        raise ConfigError(f"sink_positions is {value!r:.80}; it must be one of {', '.join(SINK_POSITIONS)}.")


def layer_specs(config: Mapping[str, Any]) -> list[AttentionSpec]:
    """The self-attention of every layer, with its options.

    Raises:
        ConfigError: a letter of the plan that no kind has.
    """
    return [kind_of(letter).of_config(config) for letter in config["layer_plan"]]


def ffn_rank_beside(spec: AttentionSpec, config: Mapping[str, Any]) -> int:
    """Rank of the LoRA in the feed-forward of a layer with this self-attention; 0 for none."""
    has_lora = spec.lora_in_ffn or config.get("ffn_rank_layers") == "all"
    rank: int = config.get("ffn_rank", 0) if has_lora else 0
    return rank
