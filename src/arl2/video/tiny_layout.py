"""The published files of the tiny video codecs (``taew2_1`` and its family): sizes, and where they differ from ours.

Names and places of the layers are those of ``arl2.video.tiny_codec.TinyCodec``. What a file does not tell is the same
for every codec of four video frames a latent frame: the strides in time and space, three memory layers a stage.
"""

import math
from typing import Any

from torch import Tensor

from arl2.errors import CheckpointError

# Convolutions whose output channels are the widths: stem and stages of the encoder, start and stages of the decoder.
_ENCODER_WIDTHS = ("encoder.0.weight", "encoder.3.weight", "encoder.8.weight", "encoder.13.weight")
_DECODER_WIDTHS = ("decoder.1.weight", "decoder.8.weight", "decoder.14.weight", "decoder.20.weight")
# The 1 x 1 convolutions that split frames.
_SPLITS = ("decoder.7.conv.weight", "decoder.13.conv.weight", "decoder.19.conv.weight")


def sizes_of_tensors(tensors: dict[str, Tensor], where: str) -> dict[str, Any]:
    """Arguments of ``TinyCodec`` for the tensors of a published file.

    Raises:
        CheckpointError: a tensor that tells a size is missing or is no weight of a convolution.
    """
    for name in (*_ENCODER_WIDTHS, *_DECODER_WIDTHS):
        if name not in tensors or tensors[name].dim() != 4:
            raise CheckpointError(
                f"{where} has no convolution {name}, as every tiny codec of this family; give taew2_1.pth or another "
                "file of that layout."
            )
    pixels = tensors["encoder.0.weight"].shape[1]
    patch_size = math.isqrt(pixels // 3)
    if patch_size < 1 or 3 * patch_size**2 != pixels:
        raise CheckpointError(f"{where} takes {pixels} channels; a codec of RGB frames takes 3 times a square.")
    return {
        "patch_size": patch_size,
        "latent_channels": tensors["decoder.1.weight"].shape[1],
        "encoder_widths": [tensors[name].shape[0] for name in _ENCODER_WIDTHS],
        "decoder_widths": [tensors[name].shape[0] for name in _DECODER_WIDTHS],
    }


def with_last_frames_alone(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those that split a frame cut to their last rows where the file's split it into more frames.

    A file may hold a decoder that splits frames at a stage where this one does not. There the last frame of each group
    stands for the group, as it does in the published code: a causal stream ends a group with it.
    """
    cut = {
        name: tensors[name][-expected[name].shape[0] :]
        for name in _SPLITS
        if name in tensors and _holds_more_frames(tensors[name], expected[name])
    }
    return {**tensors, **cut}


def _holds_more_frames(found: Tensor, wanted: Tensor) -> bool:
    rows, needed = found.shape[0], wanted.shape[0]
    return found.shape[1:] == wanted.shape[1:] and rows > needed and rows % needed == 0
