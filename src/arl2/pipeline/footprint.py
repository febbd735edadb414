"""How many bytes each part takes: counted where they can be, estimated where they are working memory.

Estimates count the tensors that are alive at the widest moment. What a library sets aside for itself (a CUDA context,
a convolution's workspace, fragments between allocations) comes on top.
"""

import functools
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from arl2.attention.plan import HybridSpec
from arl2.errors import CheckpointError, ConfigError
from arl2.model.precision import parameter_dtype
from arl2.model.transformer import CausalWanTransformer3DModel

_HEADER_LIMIT = 100_000_000  # bytes, as the format itself says


class TransformerSize(NamedTuple):
    """A transformer without its weights.

    Attributes:
        config: complete, defaults filled in.
        parameters: that are of the compute dtype.
        float32_parameters: that are float32 in any case.
    """

    config: Mapping[str, Any]
    parameters: int
    float32_parameters: int

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Of all parameters in a model that computes in ``dtype``."""
        return self.parameters * dtype.itemsize + self.float32_parameters * max(4, dtype.itemsize)


def transformer_size(config: Mapping[str, Any]) -> TransformerSize:
    """Sizes of a transformer, from its configuration: it is built without memory.

    Raises:
        ConfigError: a configuration that cannot be.
    """
    own = {name: value for name, value in config.items() if not name.startswith("_")}
    return _transformer_size(json.dumps(own, sort_keys=True))


@functools.lru_cache(maxsize=16)
def _transformer_size(config: str) -> TransformerSize:
    with torch.device("meta"):
        model = CausalWanTransformer3DModel(**json.loads(config))
    kept = compute = 0
    for name, parameter in model.named_parameters():
        if parameter_dtype(name, torch.bfloat16) is torch.float32:
            kept += parameter.numel()
        else:
            compute += parameter.numel()
    return TransformerSize(dict(model.config), compute, kept)


def pass_bytes(config: Mapping[str, Any], *, tokens: int, dtype: torch.dtype) -> int:
    """Working memory of one pass over a block: an estimate.

    The widest moment is in the feed-forward (its hidden values before and after the GELU, a third time with a low-rank
    change) or in self-attention (projections, their normed and rotated copies, and float32 copies on the way; a hybrid
    layer has the state branch's besides). Attention itself is taken to be a fused kernel, without a score matrix.

    Args:
        config: complete, as :class:`TransformerSize` has it.
        tokens: of a block, of all samples.
    """
    plan: str = config["layer_plan"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    size, full = dtype.itemsize, max(4, dtype.itemsize)
    changed = config["ffn_rank"] and (config["ffn_rank_layers"] == "all" or HybridSpec.letter in plan)
    hidden = (3 if changed else 2) * size * config["ffn_dim"] + 4 * size * width
    attention = (4 * size + 4 * full) * width
    if HybridSpec.letter in plan:
        attention = max(attention, (9 * size + 5 * full) * width)
    rotation = 16 * config["attention_head_dim"]  # angles in float64, cosine and sine in float32
    return tokens * (max(hidden, attention) + size * width + rotation)


def text_pass_bytes(config: Mapping[str, Any], *, batch: int, dtype: torch.dtype) -> int:
    """Working memory of encoding prompts: an estimate; a handful of tensors of the encoder's width and hidden width."""
    return 16 * batch * config["text_len"] * config["text_dim"] * max(4, dtype.itemsize)


@dataclass(frozen=True)
class DecoderFootprint:
    """What decoding takes, latent frame by latent frame.

    Attributes:
        parameters: of the codec, encoder included if it is loaded.
        cached: numbers remembered between latent frames, for each pixel of the picture.
        working: numbers alive at the widest moment besides, for each pixel of the picture.
    """

    parameters: int
    cached: float
    working: float

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Of all parameters."""
        return self.parameters * dtype.itemsize

    def cache_bytes(self, *, batch: int, pixels: int, dtype: torch.dtype) -> int:
        """Remembered between latent frames."""
        return math.ceil(self.cached * batch * pixels) * dtype.itemsize

    def work_bytes(self, *, batch: int, pixels: int, dtype: torch.dtype) -> int:
        """Alive at the widest moment of a latent frame besides."""
        return math.ceil(self.working * batch * pixels) * dtype.itemsize


TINY_DECODER = DecoderFootprint(parameters=11_315_539, cached=84.0, working=594.0)
"""The tiny codec in the published widths (``taew2_1``)."""


def wan_decoder(config: Mapping[str, Any], parameters: int) -> DecoderFootprint:
    """The decoder of ``AutoencoderKLWan``: an estimate from its widths.

    Every causal convolution remembers the last two frames of its input: that is counted. At work, a residual block
    holds about seven tensors of its width for the frames that one latent frame has become: the skip, the normed input,
    its copy behind the two remembered frames, the padded copy, the result.

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
        working = max(working, 7 * frames * max(before, after) / area)
        if stage < stages - 1 and doubles_time[stage]:
            remembered += after / area
            frames *= 2
    remembered += widths[-1]
    return DecoderFootprint(parameters, 2 * remembered, working + 3 * frames)


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
    if not path.is_file():
        raise CheckpointError(f"There is no file or folder {path}; give weights.")
    return _header_count(path) if path.suffix == ".safetensors" else path.stat().st_size // 2


def _header_count(path: Path) -> int:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        counts = [math.prod(shape) for shape in shapes]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise CheckpointError(f"{path} is not a whole .safetensors file ({error!r}); download it again.") from error
    # Every number takes a byte at least, so a header that promises more than the file holds is not honest.
    if not all(type(n) is int and n >= 0 for shape in shapes for n in shape) or sum(counts) > size:
        raise CheckpointError(f"{path} names shapes that its {size:,} bytes cannot hold; download it again.")
    return sum(counts)
