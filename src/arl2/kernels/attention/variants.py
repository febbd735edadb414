"""The ways that torch computes full attention, each by its name, and which of them is the fastest for given tensors.

On CUDA torch has three fused kernels, and which is the fastest depends on the card, the shape and the dtype; so they
are timed (:mod:`arl2.kernels.timings`), at the first call with new sizes. On a CPU half precision is computed as it is
or in float32, whichever is faster there.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from arl2.errors import ConfigError
from arl2.kernels.backends import ATTENTION, settled
from arl2.kernels.timings import can_be_timed, is_captured, machine_part, timings, wait_for

OWN, FLOAT32 = "sdpa", "float32"  # torch's own choice of kernel, in the tensors' dtype or in float32
CUDA_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_CUT_QUERIES, _CUT_KEYS = 512, 1024  # on a CPU a part is timed: whole blocks would take seconds


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None, variant: str) -> Tensor:
    """``softmax(scale q k^T) v`` of ``[B, T, H, D]`` by one of the variants, in the inputs' dtype.

    Raises:
        ConfigError: the variant cannot do these tensors.
    """
    if refusal := refused_on(variant, q.device):
        raise ConfigError(refusal)
    if variant not in CUDA_KERNELS or torch.compiler.is_compiling():
        return _run(q, k, v, scale, variant)
    try:
        return _run(q, k, v, scale, variant)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ConfigError(
            f"Backend {variant!r} of {ATTENTION} cannot do {q.shape[1]} queries and {k.shape[1]} keys in "
            f"{q.shape[2]} heads of {q.shape[3]} in {_name(q.dtype)} on this device; use 'auto'."
        ) from error


def refused_on(variant: str, device: torch.device | str) -> str:
    """Why a backend that was requested cannot run on a device; empty if it can."""
    kind = torch.device(device).type
    if variant in CUDA_KERNELS and kind != "cuda":
        return f"Backend {variant!r} of {ATTENTION} runs on CUDA devices, not on {kind}; use 'auto' or 'sdpa'."
    return ""


def fastest(q: Tensor, k: Tensor, v: Tensor) -> str:
    """The fastest variant for these tensors, timed if it has to be; torch's own choice while gradients are recorded.

    In a graph nothing can be timed: there it is what was found before, or else torch's own choice.
    """
    if q.is_cuda:
        candidates = tuple(CUDA_KERNELS)
    elif q.device.type == "cpu" and q.dtype.itemsize < 4:
        candidates = (OWN, FLOAT32)
        q, k, v = q[:1, :_CUT_QUERIES], k[:1, :_CUT_KEYS], v[:1, :_CUT_KEYS]
    else:
        return OWN
    if torch.is_grad_enabled() or not (q.numel() and k.numel()):
        return OWN
    if torch.compiler.is_compiling() or is_captured(q):
        return _found_before(q.device.type, q.device.index, q.dtype, tuple(q.shape), k.shape[1], candidates)
    if not can_be_timed(q):
        return OWN
    ways = {name: lambda name=name: _run(q, k, v, None, name) for name in candidates}
    try:
        key = _key(q.device, q.dtype, tuple(q.shape), _rounded(k.shape[1]))
        return timings().fastest(key, ways, lambda: wait_for(q.device))
    except RuntimeError:
        return OWN  # float64, or heads too wide for any of them: torch has a slow way


@settled
def _found_before(
    kind: str, index: int | None, dtype: torch.dtype, queries: tuple[int, ...], keys: int, candidates: tuple[str, ...]
) -> str:
    device = torch.device(kind if index is None else f"{kind}:{index}")
    most = _rounded(keys)
    # Passes are compiled when the window is full, so the passes before had fewer keys: half as many tell as much.
    for size in (most, most // 2):
        key = _key(device, dtype, queries, size)
        if found := timings().known(key, dict.fromkeys(candidates, lambda: None)):
            return found
    return OWN


def _rounded(keys: int) -> int:
    """The next power of two: a cache that grows is timed again whenever it has doubled."""
    return 1 << (keys - 1).bit_length()


def _key(device: torch.device, dtype: torch.dtype, queries: tuple[int, ...], keys: int) -> str:
    """What a choice may follow from."""
    batch, tokens, heads, head = queries
    sizes = f"{batch} x {tokens} queries, up to {keys} keys, {heads} heads of {head}"
    return f"{ATTENTION}, {machine_part(device)}, {_name(dtype)}, {sizes}"


def _run(q: Tensor, k: Tensor, v: Tensor, scale: float | None, variant: str) -> Tensor:
    if variant == FLOAT32:
        return _plain(q.float(), k.float(), v.float(), scale).to(q.dtype)
    if variant == OWN:
        return _plain(q, k, v, scale)
    with sdpa_kernel([CUDA_KERNELS[variant]]):
        return _plain(q, k, v, scale)


def _plain(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
