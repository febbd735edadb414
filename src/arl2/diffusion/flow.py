"""The straight path between data and noise: ``x_t = (1 - sigma) x0 + sigma eps``, velocity ``v = eps - x0``.

Computed in float64. Without it, float32 is a few roundings away: latents are of the size of 1, and nothing is summed.
"""

from jaxtyping import Float
from torch import Tensor

from arl2.float64 import widest_dtype


def add_noise(
    clean: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], sigma: float | Float[Tensor, "..."]
) -> Float[Tensor, "*shape"]:
    """The noisy sample at ``sigma`` (a number, or a tensor that broadcasts over ``clean``)."""
    sigma, wide = _like(sigma, clean), widest_dtype(clean.device)
    return ((1 - sigma) * clean.to(wide) + sigma * noise.to(wide)).to(clean.dtype)


def velocity_to_clean(
    noisy: Float[Tensor, "*shape"], velocity: Float[Tensor, "*shape"], sigma: float | Float[Tensor, "..."]
) -> Float[Tensor, "*shape"]:
    """``x0 = x_t - sigma v``, in float64: near sigma 1 it subtracts two large numbers."""
    sigma, wide = _like(sigma, noisy), widest_dtype(noisy.device)
    return (noisy.to(wide) - sigma * velocity.to(wide)).to(noisy.dtype)


def clean_to_velocity(clean: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What the model is trained to predict: ``v = eps - x0``."""
    return noise - clean


def _like(sigma: float | Tensor, x: Tensor) -> float | Tensor:
    return sigma.to(widest_dtype(x.device)).to(x.device) if isinstance(sigma, Tensor) else sigma
