"""How many bytes text encoder and decoder take: counted where they can be, estimated where they are working memory.

Estimates count the tensors that are alive at the widest moment. What a library sets aside for itself (a CUDA context,
a convolution's workspace, fragments between allocations) comes on top.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arl2.errors import CheckpointError, ConfigError
from arl2.files.regular import require_regular
from arl2.files.tensors import safetensors_shapes
from arl2.video.codec import FRAMES_AT_ONCE, SPATIAL_FACTOR, TEMPORAL_FACTOR


def text_pass_bytes(config: Mapping[str, Any], *, batch: int, dtype: torch.dtype) -> int:
    """Working memory of encoding prompts: an estimate; a handful of tensors of the encoder's width and hidden width."""
    return 16 * batch * config["text_len"] * config["text_dim"] * max(4, dtype.itemsize)


@dataclass(frozen=True)
class DecoderFootprint:
    """What decoding takes, block by block.

    Attributes:
        parameters: of the codec, encoder included if it is loaded.
        cached: numbers remembered between latent frames, for each pixel of the picture.
        working: numbers alive at the widest moment on top, for each pixel of the picture.
        sums: of what is remembered, the numbers that are float32 or better.
        spatial_factor, temporal_factor: pixels along a side, and video frames, that a latent one stands for.
    """

    parameters: int
    cached: float
    working: float
    sums: float = 0.0
    spatial_factor: int = SPATIAL_FACTOR
    temporal_factor: int = TEMPORAL_FACTOR

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Of all parameters."""
        return self.parameters * dtype.itemsize

    def cache_bytes(self, *, batch: int, pixels: int, dtype: torch.dtype) -> int:
        """Remembered between latent frames."""
        sums = math.ceil(self.sums * batch * pixels) * max(4, dtype.itemsize)
        return math.ceil(self.cached * batch * pixels) * dtype.itemsize + sums

    def work_bytes(self, *, batch: int, pixels: int, dtype: torch.dtype) -> int:
        """Alive at the widest moment of a call on top."""
        return math.ceil(self.working * batch * pixels) * dtype.itemsize


TINY_DECODER = DecoderFootprint(parameters=11_315_539, cached=84.0, working=594.0)
"""The tiny codec in the published widths (``taew2_1``)."""


def wan_decoder(config: Mapping[str, Any], parameters: int) -> DecoderFootprint:
    """The decoder of ``AutoencoderKLWan`` as ``arl2.video.wan_passes`` runs it: an estimate from its widths.

    Every causal convolution remembers the last two frames of its input, the last one what they add to the next two
    frames: that is counted. At work, a residual block holds four tensors of its width, the skip, what is added to it,
    the sum and the next convolution's input, and four frames more of what is remembered. The last stage goes latent
    frame by latent frame, beside the whole block as it left the stage before.

    Args:
        config: the codec's ``config.json``, or its ``config``.
        parameters: of the codec.

    Raises:
        ConfigError: another architecture than Wan 2.1's.
    """
    if config.get("is_residual") or config.get("patch_size"):
        raise ConfigError("This codec is Wan 2.2's; decoding memory is known of Wan 2.1's and of the tiny one.")
    base = config.get("decoder_base_dim") or config["base_dim"]
    multiples = list(config["dim_mult"])
    widths = [base * m for m in (multiples[-1], *reversed(multiples))]
    doubles_time = list(reversed(config["temperal_downsample"]))  # the key is spelt so
    residual = config["num_res_blocks"] + 1
    stages = len(multiples)
    coarse = 4 ** (stages - 1)  # pixels of the picture for each of the latent
    remembered = (config["z_dim"] + 4 * widths[0]) / coarse
    working = 0.0
    frames = 1
    for stage in range(stages):
        area = coarse / 4**stage
        before, after = widths[stage] // (2 if stage else 1), widths[stage + 1]
        remembered += (before + (2 * residual - 1) * after) / area
        at_once, is_last = FRAMES_AT_ONCE * frames, stage == stages - 1
        held = 4 * ((frames if is_last else at_once) + 1) * max(before, after) / area
        working = max(working, held + (at_once * widths[stage] / (4 * area) if is_last else 0))
        if not is_last and doubles_time[stage]:
            remembered += after / area
            frames *= 2
    return DecoderFootprint(
        parameters,
        2 * remembered,
        working + 2 * 3 * FRAMES_AT_ONCE * frames,
        sums=2 * 3,
        spatial_factor=2 ** (stages - 1),
        temporal_factor=2 ** sum(doubles_time),
    )


def parameters_of(path: str | Path) -> int:
    """Number of parameters of a ``.safetensors`` file, or of all those of a folder, read off their headers.

    Of a ``.pt`` or ``.pth``, whose header is no header but a program, an upper bound from its size: as if it were in
    half precision.

    Raises:
        CheckpointError: nothing there, or a file that is damaged.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{path} has no .safetensors file; give the folder of one part of a model.")
        return sum(_header_count(file) for file in files)
    if not path.exists():
        raise CheckpointError(f"There is no file or folder {path}; give weights.")
    return _header_count(path) if path.suffix == ".safetensors" else require_regular(path) // 2


def _header_count(path: Path) -> int:
    return sum(math.prod(shape) for shape in safetensors_shapes(path).values())
