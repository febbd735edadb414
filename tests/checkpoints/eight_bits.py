"""Weights in 8-bit floats, as ComfyUI stores them."""

import torch
from torch import Tensor


def eight_bits(
    tensors: dict[str, Tensor], kind: torch.dtype, *, scaled: str | None, rows: bool = False
) -> dict[str, Tensor]:
    """As ComfyUI stores it: matrices of layers in 8 bits, with a scale beside each if ``scaled`` names it."""
    stored = {}
    for name, x in tensors.items():
        if x.dim() != 2 or "blocks" not in name:
            stored[name] = x if scaled else x.to(kind)
            continue
        most = x.abs().amax(dim=1, keepdim=True) if rows else x.abs().max()
        scale = (most / 100.0).float()
        stored[name] = (x / scale).to(kind) if scaled else x.to(kind)
        if scaled:
            stem = name.removesuffix("weight")
            stored |= {f"{stem}{scaled}": scale, f"{stem}scale_input": torch.ones(1)}
    return stored
