"""The straight path between data and noise: ``x_t = (1 - sigma) x0 + sigma eps``, velocity ``v = eps - x0``."""

import torch
from jaxtyping import Float
from torch import Tensor


def add_noise(
    clean: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], sigma: float | Float[Tensor, "..."]
) -> Float[Tensor, "*shape"]:
    """The noisy sample at ``sigma`` (a number, or a tensor that broadcasts over ``clean``)."""
    sigma = _like(sigma, clean)
    return ((1 - sigma) * clean.double() + sigma * noise.double()).to(clean.dtype)


def velocity_to_clean(
    noisy: Float[Tensor, "*shape"], velocity: Float[Tensor, "*shape"], sigma: float | Float[Tensor, "..."]
) -> Float[Tensor, "*shape"]:
    """``x0 = x_t - sigma v``, in float64: near sigma 1 it subtracts two large numbers."""
    sigma = _like(sigma, noisy)
    return (noisy.double() - sigma * velocity.double()).to(noisy.dtype)


def clean_to_velocity(clean: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What the model is trained to predict: ``v = eps - x0``."""
    return noise - clean


def _like(sigma: float | Tensor, x: Tensor) -> float | Tensor:
    return sigma.to(x.device, torch.float64) if isinstance(sigma, Tensor) else sigma
