"""The input of a causal convolution: one custom op, its forms, and which of them is used."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import ConfigError
from arl2.kernels.backends import ELEMENTWISE, announce, is_installed, requested_backend
from arl2.kernels.causal_input.eager import causal_input_eager
from arl2.kernels.causal_input.naive import causal_input_naive
from arl2.kernels.causal_input.shapes import Frames, Interleaved, empty_sum, output_shapes

_OPERATION = "input of causal convolutions"
_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MOST_CHANNELS = 4096  # of the Triton kernel, which holds all channels of a pixel at once


def causal_input(
    x: Interleaved,
    *,
    bias: Float[Tensor, " channels"] | None = None,
    residual: Frames | None = None,
    gamma: Float[Tensor, " channels"] | None = None,
    past: Float[Tensor, "batch lookback height width channels"] | None = None,
    lookback: int = 0,
    margin: int = 0,
    silu: bool = False,
    want_sum: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add up, normalise, activate, and put behind the frames that a convolution remembers.

    With ``sum = x + bias + residual`` and ``new = silu(rms_norm(sum) * gamma)``, the frames are ``past`` and then
    ``new``. All is computed in float32 or better and rounded once. On CUDA it is one kernel, which reads each input
    and writes each result once.

    Args:
        x: of the layer before; see ``shapes`` for its dimensions.
        bias: of the layer before, where it has not been added.
        residual: added as well, ``[batch, frames, height, width, channels]``.
        gamma: of the RMS norm over channels (the norm of the Wan VAE: no epsilon, a floor of 1e-12); None: no norm.
        past: the last ``lookback`` frames that the convolution read before; None: zeros, as at the start of a stream.
        lookback: frames that it looks back.
        margin: rows of zeros below and columns of zeros on the right, of a convolution that halves the picture.
        silu: whether to activate.
        want_sum: whether the sum is returned, too.

    Returns:
        The sum (no numbers unless asked for), the frames ``[batch, lookback + frames, height + margin, width + margin,
        channels]``, and a copy of their last ``lookback``, which is the next ``past``.
    """
    assert not (lookback and margin), "no convolution of the Wan VAE has both"
    arguments = (x, bias, residual, gamma, past, lookback, margin, silu, want_sum)
    if torch.is_grad_enabled() and any(isinstance(one, Tensor) and one.requires_grad for one in arguments):
        return causal_input_naive(*arguments)
    return _op(*arguments) if x.is_cuda or x.is_meta else causal_input_eager(*arguments)


@torch.library.custom_op("arl2::causal_input", mutates_args=())
def _op(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gamma: Tensor | None,
    past: Tensor | None,
    lookback: int,
    margin: int,
    silu: bool,
    want_sum: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return causal_input_eager(x, bias, residual, gamma, past, lookback, margin, silu, want_sum)


@_op.register_fake
def _made_up(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gamma: Tensor | None,
    past: Tensor | None,
    lookback: int,
    margin: int,
    silu: bool,
    want_sum: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    whole, framed, remembered = output_shapes(x, lookback, margin)
    return (x.new_empty(whole) if want_sum else empty_sum(x)), x.new_empty(framed), x.new_empty(remembered)


@_op.register_kernel("cuda")
def _on_cuda(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    requested = requested_backend(ELEMENTWISE, "auto")
    refusal = "requested" if requested == "torch" else _refusal(x)
    if refusal and requested == "triton":
        raise ConfigError(f"Backend 'triton' of {ELEMENTWISE} cannot run: {refusal}; use 'auto' or 'torch'.")
    announce(_OPERATION, "eager" if refusal else "triton", refusal or "one kernel")
    if refusal:
        return causal_input_eager(x, *others)
    # Importing it loads Triton, which a machine without a GPU need not have.
    from arl2.kernels.causal_input.triton_kernel import causal_input_triton

    with torch.cuda.device_of(x):  # Triton launches on the current device
        return causal_input_triton(x, *others)


def _refusal(x: Tensor) -> str | None:
    """Why the Triton kernel is not used."""
    if not is_installed("triton"):
        return "Triton is not installed"
    if x.dtype not in _TRITON_DTYPES:
        return f"the Triton kernel does not compute in {x.dtype}"
    if x.shape[-1] > _MOST_CHANNELS:
        return f"the Triton kernel takes at most {_MOST_CHANNELS} channels"
    return None
