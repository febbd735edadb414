"""Which published layout a file is in, and its tensors under our names. Never a partial translation."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

from arl2.checkpoints.names import diffusers_names, is_converted, original_names
from arl2.errors import CheckpointError

# Wrappers of training frameworks leave their names inside tensor names.
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
# So do the modules that a transformer was part of: of a data-parallel wrapper, of the published model wrapper, and of
# ComfyUI (``model.diffusion_model.``, or ``diffusion_model.`` alone), in any order.
_PREFIXES = re.compile(r"(?:(?:module|model|diffusion_model)\.)+")
# Every layout has this tensor; what stands before it in an unknown file, stands before all others.
_FIRST = "patch_embedding.weight"


class Layout(Enum):
    """The layouts that load."""

    NATIVE = "arl2 (save_pretrained)"
    WAN = "Wan 2.1 original"
    WAN_DIFFUSERS = "Wan 2.1 diffusers"
    CAUSAL = "causal Wan (CausVid, Self Forcing, Causal Forcing)"
    ARL2 = "ARL2 published"


@dataclass(frozen=True)
class Translated:
    """A file's tensors under our names, and the scales of those in 8 bits (``files.float8``)."""

    layout: Layout
    tensors: dict[str, Tensor]
    scales: dict[str, Tensor] = field(default_factory=dict)


def translate(tensors: dict[str, Tensor], where: str, scales: Mapping[str, Tensor] | None = None) -> Translated:
    """Recognise the layout and rename every tensor.

    Args:
        tensors: as read from the file.
        where: the file, for messages.
        scales: of tensors in 8 bits, by the same names.

    Raises:
        CheckpointError: no known layout, or names that the layout does not have; the message says what it looks like.
    """
    bare_names = _bare_names(tensors, where)
    bare = {short: tensors[name] for name, short in bare_names.items()}
    if "text_embedder.linear_1.weight" in bare and any(name.startswith("layers.") for name in bare):
        return Translated(Layout.NATIVE, bare, {bare_names[name]: scale for name, scale in (scales or {}).items()})
    if "condition_embedder.time_embedder.linear_1.weight" in bare:
        layout = Layout.WAN_DIFFUSERS
        ours = diffusers_names(_layer_count(bare, where))
    elif "time_projection.1.weight" in bare:
        layout = _original_kind(set(tensors), bare)
        ours = {short: short for short in original_names(_layer_count(bare, where))}
    else:
        raise CheckpointError(_not_a_model(tensors, where))
    _refuse_unknown(bare, ours.keys(), layout, where)
    table = original_names(_layer_count(bare, where))
    named = {short: table[ours[short]] for short in bare}
    return Translated(
        layout,
        {named[short].ours: named[short].to_ours(tensor) for short, tensor in bare.items()},
        {named[bare_names[name]].ours: scale for name, scale in (scales or {}).items()},
    )


def to_original(tensors: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Our tensors under the original (and ARL2) names, in the published shapes."""
    table = {name.ours: (original, name.to_original) for original, name in original_names(num_layers).items()}
    return {table[ours][0]: table[ours][1](tensor) for ours, tensor in tensors.items()}


def to_diffusers(original: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Tensors of a softmax model under the original names, under those of diffusers."""
    table = {theirs: name for name, theirs in diffusers_names(num_layers).items()}
    return {table[name]: tensor for name, tensor in original.items()}


def _bare_names(tensors: Mapping[str, Tensor], where: str) -> dict[str, str]:
    """Every name without what wrappers and enclosing modules have put before and into it."""
    shortened = {name: _without_wrappers(name) for name in tensors}
    if _FIRST not in shortened.values():
        prefixes = [short.removesuffix(_FIRST) for short in shortened.values() if short.endswith(f".{_FIRST}")]
        if len(prefixes) > 1:
            raise CheckpointError(
                f"{where} holds several transformers, behind {', '.join(sorted(prefixes))}; save the one to load in a "
                "file of its own."
            )
        if prefixes:
            outside = sorted(name for name, short in shortened.items() if not short.startswith(prefixes[0]))
            if outside:
                raise CheckpointError(
                    f"{where} has a transformer behind {prefixes[0]} and {len(outside)} other tensors, first "
                    f"{', '.join(outside[:3])}; save the transformer in a file of its own."
                )
            shortened = {name: short.removeprefix(prefixes[0]) for name, short in shortened.items()}
    seen: set[str] = set()
    for short in shortened.values():
        if short in seen:
            raise CheckpointError(f"{where} holds {short} twice, under wrapped and plain names; it is not one model.")
        seen.add(short)
    return shortened


def _without_wrappers(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    found = _PREFIXES.match(name)
    return name if found is None else name[found.end() :]


def _original_kind(names: set[str], bare: dict[str, Tensor]) -> Layout:
    if any(map(is_converted, bare)):
        return Layout.ARL2
    causal = any(name.startswith(("model.", "module.")) and ".diffusion_model." not in name for name in names)
    return Layout.CAUSAL if causal else Layout.WAN


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
            f"first {', '.join(unknown[:3])}; {_kind_of_stranger(unknown)}only text-to-video transformers load."
        )


def _kind_of_stranger(unknown: list[str]) -> str:
    of_images = any(part in name for name in unknown for part in ("img_emb", "_img", "image_embedder", "add_k_proj"))
    return "it is an image-to-video model: " if of_images else ""


def _not_a_model(tensors: dict[str, Tensor], where: str) -> str:
    if tensors and all("lora" in name.lower() for name in tensors):
        return f"{where} holds LoRA tensors alone; give the checkpoint of the whole model."
    shown = ", ".join(sorted(tensors)[:3])
    accepted = "; ".join(layout.value for layout in Layout)
    return f"{where} is no known transformer ({len(tensors)} tensors, first {shown}); accepted are: {accepted}."
