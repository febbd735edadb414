"""Weights in 8-bit floating point: plain ones are widened, scaled ones are also multiplied by their scale.

A scaled file, as ComfyUI writes it, has ``NAME.scale_weight`` (newer files: ``NAME.weight_scale``) beside
``NAME.weight``, and a marker tensor ``scaled_fp8``. The weight that was meant is their product. What a file says of
how to multiply in 8 bits (``scale_input``, ``input_scale``, ``comfy_quant``) does not matter: we compute in full.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from arl2.errors import CheckpointError

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALES = ("scale_weight", "weight_scale")
_IGNORED = ("scaled_fp8", "scale_input", "input_scale", "comfy_quant")


def without_scales(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights, and the scales of those that have one, by the weight's name.

    Args:
        tensors: by name, as stored, behind any prefix.
        where: what errors call the file.

    Raises:
        CheckpointError: a scale without its weight, one that is not one finite number for the weight or for each of
            its rows, or an 8-bit matrix without a scale where other weights of the file have one.
    """
    weights, scales = {}, {}
    marked = False
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition(".")
        if last in _SCALES:
            scales[f"{stem}.weight" if stem else "weight"] = tensor
        elif last in _IGNORED:
            marked = marked or last == "scaled_fp8"
        else:
            weights[name] = tensor
    for name, scale in scales.items():
        if name not in weights:
            raise CheckpointError(f"{where} has a scale for {name} and no such weight; download it again.")
        _require_scale(name, scale, weights[name], where)
    lacking = [name for name, x in weights.items() if x.dtype in FLOAT8 and x.dim() > 1 and name not in scales]
    if lacking and (scales or marked):
        raise CheckpointError(
            f"{where} holds scaled 8-bit weights, but {len(lacking)} have no scale, first {lacking[0]}; download it "
            "again."
        )
    return weights, scales


def widened(tensor: Tensor, scale: Tensor | None = None, *, dtype: torch.dtype) -> Tensor:
    """A weight in ``dtype``, times its scale if it has one: the product is made in float32 and rounded once."""
    if scale is None:
        return tensor.to(dtype)
    per_row = scale.to(tensor.device, torch.float32).reshape(-1, *[1] * (tensor.dim() - 1))
    return (tensor.float() * per_row).to(dtype)


def all_widened(tensors: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without 8-bit ones: plain ones become bfloat16, which holds them exactly, scaled ones float32."""
    return {name: widened(x, scales.get(name), dtype=exact_dtype(x, name in scales)) for name, x in tensors.items()}


def exact_dtype(tensor: Tensor, scaled: bool = False) -> torch.dtype:
    """The narrowest dtype to compute in that holds a stored weight."""
    if scaled:
        return torch.float32
    return torch.bfloat16 if tensor.dtype in FLOAT8 else tensor.dtype


def _require_scale(name: str, scale: Tensor, weight: Tensor, where: str) -> None:
    rows = weight.shape[0] if weight.dim() else 1
    fits = list(scale.shape) in ([], [1], [rows], [rows, *[1] * (weight.dim() - 1)])
    if not fits or not scale.dtype.is_floating_point or not bool(scale.float().isfinite().all()):
        raise CheckpointError(
            f"{where}: the scale of {name} {list(weight.shape)} is {list(scale.shape)} {scale.dtype}; a scale is one "
            "finite number for the weight, or one for each row."
        )
