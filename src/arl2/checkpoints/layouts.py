"""Which published layout a file is in, and its tensors under our names. Never a partial translation."""

import re
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from arl2.checkpoints.names import diffusers_names, is_converted, original_names
from arl2.errors import CheckpointError

# Wrappers of training frameworks leave their names inside tensor names.
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")


class Layout(Enum):
    """The layouts that load."""

    NATIVE = "arl2 (save_pretrained)"
    WAN = "Wan 2.1 original"
    WAN_DIFFUSERS = "Wan 2.1 diffusers"
    CAUSAL = "causal Wan (CausVid, Self Forcing, Causal Forcing)"
    ARL2 = "ARL2 published"


@dataclass(frozen=True)
class Translated:
    """A file's tensors under our names."""

    layout: Layout
    tensors: dict[str, Tensor]


def translate(tensors: dict[str, Tensor], where: str) -> Translated:
    """Recognise the layout and rename every tensor.

    Args:
        tensors: as read from the file.
        where: the file, for messages.

    Raises:
        CheckpointError: no known layout, or names that the layout does not have; the message says what it looks like.
    """
    names = set(tensors)
    if "text_embedder.linear_1.weight" in names and any(name.startswith("layers.") for name in names):
        return Translated(Layout.NATIVE, tensors)
    bare = _unwrapped(tensors, where)
    if "condition_embedder.time_embedder.linear_1.weight" in bare:
        table = diffusers_names(_layer_count(bare, where))
        _refuse_unknown(bare, table.keys(), Layout.WAN_DIFFUSERS, where)
        bare = {table[name]: tensor for name, tensor in bare.items()}
        layout = Layout.WAN_DIFFUSERS
    elif "time_projection.1.weight" in bare:
        layout = _original_kind(names, bare)
    else:
        raise CheckpointError(_not_a_model(tensors, where))
    table_ours = original_names(_layer_count(bare, where))
    _refuse_unknown(bare, table_ours.keys(), layout, where)
    return Translated(layout, {table_ours[n].ours: table_ours[n].to_ours(t) for n, t in bare.items()})


def to_original(tensors: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Our tensors under the original (and ARL2) names, in the published shapes."""
    table = {name.ours: (original, name.to_original) for original, name in original_names(num_layers).items()}
    return {table[ours][0]: table[ours][1](tensor) for ours, tensor in tensors.items()}


def _unwrapped(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    bare: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name
        for wrapper in _WRAPPERS:
            short = short.replace(wrapper, "")
        # One prefix of a data-parallel wrapper, then one of the published model wrapper; no more.
        short = short.removeprefix("module.").removeprefix("model.")
        if short in bare:
            raise CheckpointError(f"{where} holds {short} twice, under wrapped and plain names; it is not one model.")
        bare[short] = tensor
    return bare


def _original_kind(names: set[str], bare: dict[str, Tensor]) -> Layout:
    if any(map(is_converted, bare)):
        return Layout.ARL2
    return Layout.CAUSAL if any(name.startswith(("model.", "module.")) for name in names) else Layout.WAN


def _layer_count(bare: dict[str, Tensor], where: str) -> int:
    indices = {int(found.group(1)) for name in bare if (found := re.match(r"blocks\.(\d{1,6})\.", name))}
    missing = sorted(set(range(max(indices, default=0) + 1)) - indices)
    if missing:
        raise CheckpointError(
            f"{where} has no tensors of layer {missing[0]} ({len(missing)} layers are missing); the file is not whole."
        )
    return len(indices)


def _refuse_unknown(bare: dict[str, Tensor], known: object, layout: Layout, where: str) -> None:
    unknown = sorted(set(bare) - set(known))  # type: ignore[call-overload]
    if unknown:
        raise CheckpointError(
            f"{where} looks like {layout.value} but has {len(unknown)} tensors that this layout does not know, "
            f"first {', '.join(unknown[:3])}; only text-to-video transformers load."
        )


def _not_a_model(tensors: dict[str, Tensor], where: str) -> str:
    if tensors and all("lora" in name.lower() for name in tensors):
        return f"{where} holds LoRA tensors alone; give the checkpoint of the whole model."
    shown = ", ".join(sorted(tensors)[:3])
    accepted = "; ".join(layout.value for layout in Layout)
    return f"{where} is no known transformer ({len(tensors)} tensors, first {shown}); accepted are: {accepted}."
