"""A hash of a model that takes a fraction of a second whatever the model's size.

It is the SHA-256 of the configurations of transformer and codec and of every tensor's name, shape, dtype and a sample
of its bytes: all of a tensor up to 64 KiB, of a larger one 16 slices of 4 KiB, spread evenly from its first byte to its
last. So it tells trainings, conversions, branches and precisions apart, but not two models that differ in a few numbers
of a large tensor alone. The text part is not in it: some read their weights only when a prompt needs them, and a
snapshot of a stream holds the prompt's embeddings.
"""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from arl2.bases.models import is_configured
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.video.codec import VideoCodec

_WHOLE, _PIECES, _PIECE = 64 * 1024, 16, 4 * 1024


def parts_hash(transformer: CausalWanTransformer3DModel, codec: VideoCodec) -> str:
    """Hexadecimal, 64 digits; see the module for what it covers."""
    digest = hashlib.sha256()
    parts: dict[str, Any] = {"transformer": transformer, "codec": codec}
    for name, part in parts.items():
        digest.update(f"{name} {type(part).__name__}\n".encode())
        if is_configured(type(part)):
            # Names that begin with _ are diffusers' own: versions and paths.
            own = {key: value for key, value in part.config.items() if not key.startswith("_")}
            digest.update(json.dumps(own, sort_keys=True, default=str).encode())
        if isinstance(part, nn.Module):
            for key, tensor in sorted(part.state_dict().items()):
                digest.update(f"{key} {list(tensor.shape)} {tensor.dtype}\n".encode())
                digest.update(sampled_bytes(tensor))
    return digest.hexdigest()


def model_metadata(transformer: CausalWanTransformer3DModel, codec: VideoCodec) -> dict[str, str]:
    """What must be the same to resume a stream: plan and sizes, dtype, codec, and the weights themselves."""
    return {
        "signature": transformer.signature,
        "dtype": str(transformer.compute_dtype).removeprefix("torch."),
        "codec": type(codec).__name__,
        "hash": parts_hash(transformer, codec),
    }


def sampled_bytes(tensor: Tensor, *, dtype: torch.dtype | None = None) -> bytes:
    """All bytes of a small tensor, and of a larger one the slices described above.

    Args:
        tensor: of any shape and dtype, on any device.
        dtype: what floating-point numbers are rounded to; the sample is as large as that of a tensor of this dtype, so
            it is the same whatever the tensor was loaded in. None: the tensor's own.
    """
    flat = tensor.detach().reshape(-1)
    size = (tensor.dtype if dtype is None else dtype).itemsize
    if flat.numel() * size > _WHOLE:
        length = _PIECE // size
        last = flat.numel() - length
        starts = [last * i // (_PIECES - 1) for i in range(_PIECES)]
        flat = torch.cat([flat[start : start + length] for start in starts])
    if dtype is not None and flat.is_floating_point():
        flat = flat.to(dtype)
    return flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()
