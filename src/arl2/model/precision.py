"""Which parameters stay float32 whatever the compute dtype, and the one function that casts a model."""

import torch
from torch import nn

from arl2.model.transformer import CausalWanTransformer3DModel


def parameter_dtype(name: str, compute_dtype: torch.dtype) -> torch.dtype:
    """The dtype of the parameter ``name`` in a model that computes in ``compute_dtype``."""
    kept = CausalWanTransformer3DModel._keep_in_fp32_modules
    wants_float32 = compute_dtype.itemsize < torch.float32.itemsize and not set(kept).isdisjoint(name.split("."))
    return torch.float32 if wants_float32 else compute_dtype


def cast_model(model: CausalWanTransformer3DModel, compute_dtype: torch.dtype) -> CausalWanTransformer3DModel:
    """Cast in place, keeping the float32 list; use this, not ``model.to(dtype)``, which rounds decay and time."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(parameter_dtype(name, compute_dtype))
    return model


def parameter_count(module: nn.Module) -> int:
    """Number of parameters (also on the meta device)."""
    return sum(p.numel() for p in module.parameters())
