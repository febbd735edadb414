"""Published sizes, as keyword arguments of :class:`CausalWanTransformer3DModel` without the layer plan."""

from types import MappingProxyType
from typing import Any

from arl2.attention.plan import plan_of
from arl2.errors import ConfigError

PRESETS: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "wan2.1-t2v-1.3b": {  # 1,418,996,800 parameters, all softmax
            "num_layers": 30,
            "num_attention_heads": 12,
            "attention_head_dim": 128,
            "ffn_dim": 8960,
        },
        "wan2.1-t2v-14b": {  # 14,288,491,584 parameters, all softmax
            "num_layers": 40,
            "num_attention_heads": 40,
            "attention_head_dim": 128,
            "ffn_dim": 13824,
        },
    }
)


def preset_config(
    name: str, *, hybrid_layers: range | list[int] | tuple[int, ...] = (), **changes: Any
) -> dict[str, Any]:
    """Arguments for ``CausalWanTransformer3DModel``: a published size, the given layers hybrid, then ``changes``.

    Raises:
        ConfigError: an unknown preset; the message lists those there are.
    """
    if name not in PRESETS:
        raise ConfigError(f"Preset {name!r} is not known; choose one of {', '.join(PRESETS)}.")
    sizes = dict(PRESETS[name])
    plan = plan_of(list(hybrid_layers), sizes.pop("num_layers"))
    return {"layer_plan": plan, **sizes, **changes}
