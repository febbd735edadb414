"""Tensors on their way to a codec."""

import torch
from torch import Tensor, nn

from arl2.video.codec import VideoCodec


def for_codec(codec: VideoCodec, x: Tensor) -> Tensor:
    """On the codec's device, in its precision; codecs without weights take what comes."""
    if not isinstance(codec, nn.Module):
        return x
    parameter = next(codec.parameters())
    return x.to(device=parameter.device, dtype=parameter.dtype)


def codec_dtype(codec: VideoCodec) -> torch.dtype | None:
    """What a codec computes in; None for one without weights."""
    return next(codec.parameters()).dtype if isinstance(codec, nn.Module) else None


def codec_device(codec: VideoCodec) -> torch.device | None:
    """Where a codec's weights are; None for one without weights."""
    return next(codec.parameters()).device if isinstance(codec, nn.Module) else None
