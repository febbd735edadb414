"""What a weights file is: layout, sizes, plan, health, and the memory it will need."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arl2.attention.plan import kind_of
from arl2.checkpoints.layouts import Layout, translate
from arl2.checkpoints.load import assumes_alpha, build_transformer, config_of
from arl2.checkpoints.reading import read_weights
from arl2.errors import GeometryError
from arl2.files.float8 import exact_dtype
from arl2.geometry import token_grid
from arl2.model.cost import MemoryBytes, memory_bytes, transformer_size
from arl2.model.precision import parameter_count
from arl2.video.codec import SPATIAL_FACTOR

LATENT_STRIDE = SPATIAL_FACTOR


@dataclass(frozen=True)
class Description:
    """A weights file, described.

    Attributes:
        layout: which published layout.
        branch: which weights of the file (``generator_ema``, ...), None if it has one set.
        unused: other entries of the file: number of tensors by name. Training leaves them; generating needs none.
        config: the model's.
        alpha_assumed: whether its LoRA alpha is the published default because nothing says it.
        parameters: of the model; ``low_rank_parameters`` of these in LoRAs.
        dtypes: stored tensors by dtype.
        scaled: how many have a scale beside them, as weights in 8 bits may.
        not_finite: names of tensors with NaN or infinity.
        weight_bytes: by compute dtype.
        memory: of one stream at ``height x width`` pixels, in half precision.
    """

    path: Path
    layout: Layout
    branch: str | None
    unused: dict[str, int]
    config: dict[str, object]
    alpha_assumed: bool
    parameters: int
    low_rank_parameters: int
    dtypes: dict[str, int]
    scaled: int
    not_finite: tuple[str, ...]
    weight_bytes: dict[str, int]
    memory: MemoryBytes
    height: int
    width: int

    @property
    def plan(self) -> str:
        """One letter a layer."""
        return str(self.config["layer_plan"])

    @property
    def kernels(self) -> tuple[str, ...]:
        """Operations whose backends decide how fast self-attention is."""
        return tuple(dict.fromkeys(name for letter in self.plan for name in kind_of(letter).kernels))


def describe(
    path: str | Path, *, branch: str = "auto", height: int = 480, width: int = 832, **settings: Any
) -> Description:
    """Describe a weights file or folder; reads every tensor once to find NaN and infinity.

    Args:
        path, branch, settings: as for ``load_transformer``.
        height, width: pixels of the video that memory is counted for.

    Raises:
        CheckpointError, ConfigError, GeometryError: as ``load_transformer``, and for a picture that does not fit.
    """
    file = read_weights(path, branch=branch)
    translated = translate(file.tensors, str(file.path), file.scales)
    assumed = assumes_alpha(file, translated, settings)
    if assumed:  # told apart below, so that loading need not say it
        settings = {**settings, "low_rank_alpha": config_of(file, translated, settings)["low_rank_alpha"]}
    model = build_transformer(file, translated, **settings)
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    for name, pixels in (("height", height), ("width", width)):
        if pixels < LATENT_STRIDE or pixels % LATENT_STRIDE:
            raise GeometryError(f"The {name} {pixels} is not a multiple of {LATENT_STRIDE} pixels, one latent's size.")
    grid = token_grid(height // LATENT_STRIDE, width // LATENT_STRIDE, tuple(model.config.patch_size))
    named = dict(model.named_parameters())
    return Description(
        path=file.path,
        layout=translated.layout,
        branch=file.branch,
        unused=file.unused,
        config=config,
        alpha_assumed=assumed,
        parameters=parameter_count(model),
        low_rank_parameters=sum(p.numel() for name, p in named.items() if ".change" in name),
        dtypes=dict(Counter(str(t.dtype).removeprefix("torch.") for t in file.tensors.values())),
        scaled=len(file.scales),
        not_finite=tuple(name for name, tensor in file.tensors.items() if not _finite(tensor)),
        weight_bytes={
            str(dtype).removeprefix("torch."): transformer_size(config).weight_bytes(dtype)
            for dtype in (torch.bfloat16, torch.float32)
        },
        memory=memory_bytes(model.config, batch=1, frame_tokens=grid.tokens, element_size=2),
        height=height,
        width=width,
    )


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor.to(exact_dtype(tensor))).all())  # not known of 8 bits
