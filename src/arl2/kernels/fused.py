"""What stands between the matrix products of a layer: norms, rotation, modulation, gates; one kernel each on a GPU.

Every function has two forms that compute the same: plain torch, which runs anywhere and has gradients, and a Triton
kernel that reads its inputs once and writes its output once, for CUDA without gradients. ``backend="auto"`` of
:mod:`arl2.kernels.backends` takes the kernel where it can run.

Legend: B batch, T tokens, F frames, S = T / F tokens a frame, H heads, D head size, d = H D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arl2.errors import ConfigError
from arl2.kernels.backends import ELEMENTWISE, announce, is_installed, requested_backend
from arl2.kernels.linear import Linear
from arl2.kernels.norm import l2_norm, layer_norm, rms_norm
from arl2.kernels.rope import Rotation


def rms_normed(
    x: Float[Tensor, "batch tokens width"], weight: Float[Tensor, " width"], eps: float
) -> Float[Tensor, "batch tokens width"]:
    """RMS norm over the whole width, in ``x``'s dtype."""
    if _use_kernel(x):
        return torch.ops.arl2.rms_normed(x, weight, eps, None, None, 1)
    return rms_norm(x, weight, eps)


def rms_normed_and_turned(
    x: Float[Tensor, "batch tokens width"],
    weight: Float[Tensor, " width"],
    eps: float,
    rotation: Rotation,
    heads: int,
) -> Float[Tensor, "batch tokens heads head"]:
    """RMS norm over the whole width, then each head turned: queries and keys of softmax attention."""
    if _use_kernel(x):
        turned = torch.ops.arl2.rms_normed(x, weight, eps, rotation.cos, rotation.sin, heads)
        return turned.unflatten(-1, (heads, -1))
    return rotation(rms_norm(x, weight, eps).unflatten(-1, (heads, -1)))


def turned_to_unit(
    x: Float[Tensor, "batch tokens heads head"], rotation: Rotation
) -> Float[Tensor, "batch tokens heads head"]:
    """Each head turned, and scaled to length 1: queries and keys of the state."""
    if _use_kernel(x):
        return torch.ops.arl2.turned_to_unit(x, rotation.cos, rotation.sin)
    return l2_norm(rotation(x))


def modulated(
    x: Float[Tensor, "batch tokens width"],
    shift: Float[Tensor, "batch frames 1 width"],
    scale: Float[Tensor, "batch frames 1 width"],
    eps: float,
) -> Float[Tensor, "batch tokens width"]:
    """``norm(x) (1 + scale) + shift``, one shift and scale a frame, in ``x``'s dtype."""
    if _use_kernel(x):
        return torch.ops.arl2.layer_normed(x, shift[:, :, 0], scale[:, :, 0], eps, True)
    normed = layer_norm(x, eps).unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift, normed, 1 + scale).flatten(1, 2).to(x.dtype)


def layer_normed(
    x: Float[Tensor, "batch tokens width"], weight: Float[Tensor, " width"], bias: Float[Tensor, " width"], eps: float
) -> Float[Tensor, "batch tokens width"]:
    """Affine layer norm, in ``x``'s dtype."""
    if _use_kernel(x):
        rows = (x.shape[0], 1, x.shape[-1])
        return torch.ops.arl2.layer_normed(x, bias.expand(rows), weight.expand(rows), eps, False)
    return layer_norm(x, eps, weight, bias).to(x.dtype)


def gated_sum(
    x: Float[Tensor, "batch tokens width"],
    change: Float[Tensor, "batch tokens width"],
    gate: Float[Tensor, "batch frames 1 width"],
) -> Float[Tensor, "batch tokens width"]:
    """``x + gate * change``, one gate a frame, computed in float32 or better."""
    if _use_kernel(x):
        return torch.ops.arl2.gated_sum(x, change, gate[:, :, 0])
    frames = gate.shape[1]
    total = torch.addcmul(x.unflatten(1, (frames, -1)).float(), change.unflatten(1, (frames, -1)).float(), gate)
    return total.flatten(1, 2).to(x.dtype)


def with_read(
    intra: Float[Tensor, "batch tokens heads head"],
    gate: Float[Tensor, "batch tokens heads"],
    inter: Float[Tensor, "batch tokens heads head"],
) -> Float[Tensor, "batch tokens heads head"]:
    """``intra + sigmoid(gate) inter``, what a hybrid layer adds of its state; in the wider dtype."""
    if _use_kernel(intra):
        return torch.ops.arl2.with_read(intra, gate, inter)
    open_by = torch.sigmoid(gate.float())[..., None]
    return torch.addcmul(intra, open_by, inter) if intra.dtype == inter.dtype else intra + open_by * inter


def decay_and_strength(
    decay: Float[Tensor, "batch tokens heads"],
    strength: Float[Tensor, "batch tokens heads"],
    a_log: Float[Tensor, " heads"],
    dt_bias: Float[Tensor, " heads"],
) -> tuple[Float[Tensor, "batch tokens heads"], Float[Tensor, "batch tokens heads"]]:
    """Log decay ``-exp(a_log) softplus(decay + dt_bias)`` and write strength ``2 sigmoid(strength)``, float32."""
    if _use_kernel(decay):
        return torch.ops.arl2.decay_and_strength(decay, strength, a_log, dt_bias)
    g = -a_log.float().exp() * F.softplus(decay.float() + dt_bias.float())
    # Twice a sigmoid: a transition may have eigenvalues down to -1.
    return g, 2 * torch.sigmoid(strength.float())


def gelu_of_linear(x: Float[Tensor, "*rows inputs"], linear: nn.Linear) -> Float[Tensor, "*rows outputs"]:
    """``gelu(linear(x))``, tanh form; on CUDA without gradients the GELU is in the product's own kernel.

    Not on a CPU: there torch's joint operation computes the erf form. Nor where something hooks into the layer.
    """
    is_hooked = bool(linear._forward_hooks or linear._forward_pre_hooks)
    if x.is_cuda and not torch.is_grad_enabled() and type(linear) in (nn.Linear, Linear) and not is_hooked:
        joint = torch._addmm_activation(linear.bias, x.flatten(0, -2), linear.weight.t(), use_gelu=True)
        return joint.unflatten(0, x.shape[:-1])
    return F.gelu(linear(x), approximate="tanh")


def _use_kernel(x: Tensor) -> bool:
    requested = requested_backend(ELEMENTWISE, "auto")
    if requested == "torch" or (requested == "auto" and not (x.is_cuda and is_installed("triton"))):
        return False
    if torch.is_grad_enabled():
        return False  # training: plain torch knows the gradients
    if requested == "triton" and not x.is_cuda:
        raise ConfigError(
            f"Backend 'triton' of {ELEMENTWISE} runs on CUDA devices, not on {x.device.type}; use 'torch'."
        )
    announce(ELEMENTWISE, "triton", "requested" if requested == "triton" else "the fastest on this device")
    return True


def _define(name: str, arguments: str, results: str = "Tensor") -> Any:
    """The operation ``arl2::name``, computed by the function of that name in :mod:`arl2.kernels.fused_triton`."""

    def compute(*given: Any) -> Any:
        from arl2.kernels import fused_triton  # imports Triton: only when used

        with torch.cuda.device_of(given[0]):  # Triton launches on the current device
            return getattr(fused_triton, name)(*given)

    return torch.library.custom_op(f"arl2::{name}", compute, mutates_args=(), schema=f"({arguments}) -> {results}")


_rms_normed = _define("rms_normed", "Tensor x, Tensor weight, float eps, Tensor? cos, Tensor? sin, int heads")
_turned = _define("turned_to_unit", "Tensor x, Tensor cos, Tensor sin")
_layer_normed = _define("layer_normed", "Tensor x, Tensor shift, Tensor scale, float eps, bool one_more")
_gated_sum = _define("gated_sum", "Tensor x, Tensor change, Tensor gate")
_with_read = _define("with_read", "Tensor intra, Tensor gate, Tensor inter")
_gates = _define(
    "decay_and_strength", "Tensor decay, Tensor strength, Tensor a_log, Tensor dt_bias", "(Tensor, Tensor)"
)


def _like_first(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


for operation in (_rms_normed, _turned, _layer_normed, _gated_sum, _with_read):
    operation.register_fake(_like_first)


@_gates.register_fake  # type: ignore[untyped-decorator]
def _(decay: Tensor, strength: Tensor, a_log: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(torch.empty(decay.shape, dtype=torch.float32, device=decay.device) for _ in range(2))  # type: ignore[return-value]
