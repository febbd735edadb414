"""The reward model of best-of-N: scores first blocks by their prompts, in the latent space, as CLIP scores images.

A saved one may have the ``_class_name`` ``Verifier``, its former name; it loads the same.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arl2.bases.models import ConfigMixin, ModelMixin, register_to_config
from arl2.errors import ConfigError

_GROUPS = 8  # of the norms
_START_SCALE = 2.0  # logarithm of what cosines are multiplied by at first


class RewardModel(ModelMixin, ConfigMixin):
    """A cosine between blocks and prompts in a shared space (CLIP, arXiv 2103.00020).

    The frames of a block are stacked as channels of one image, so that its convolutions see motion.

    Args:
        channels, frames, height, width: of the latents of a block.
        words, text_width: rows of the prompt embeddings and numbers in each.
        features: channels of the convolutions, a multiple of 8.
        depth: residual pairs of them.
        space: dimensions of the shared space.
        seed: of the first weights.

    Raises:
        ConfigError: a size that is not accepted.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        channels: int = 16,
        frames: int = 3,
        height: int = 8,
        width: int = 8,
        words: int = 16,
        text_width: int = 64,
        features: int = 64,
        depth: int = 2,
        space: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = (channels, frames, height, width, words, text_width, features, depth, space)
        if min(sizes) < 1 or features % _GROUPS:
            raise ConfigError(
                f"A reward model cannot have sizes {sizes}; all must be 1 or more, features a multiple of {_GROUPS}."
            )
        hidden = 4 * space
        corners = math.ceil(height / 2) * math.ceil(width / 2)
        self.stem = nn.Conv2d(channels * frames, features, 3, padding=1)
        self.pairs = nn.ModuleList(nn.Sequential(*_activated(features), *_activated(features)) for _ in range(depth))
        self.out = nn.Sequential(
            nn.GroupNorm(_GROUPS, features),
            nn.GELU(),
            nn.Conv2d(features, features, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(features * corners, hidden),
            nn.GELU(),
            nn.Linear(hidden, space),
        )
        self.prompt = nn.Sequential(
            nn.Flatten(), nn.Linear(words * text_width, hidden), nn.GELU(), nn.Linear(hidden, space)
        )
        self.scale = nn.Parameter(torch.tensor(_START_SCALE))
        self._initialise(seed)

    @property
    def block_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of the blocks it takes."""
        config = self.config
        return config.channels, config.frames, config.height, config.width

    def embed_blocks(
        self, latents: Float[Tensor, "blocks channels frames height width"]
    ) -> Float[Tensor, "blocks space"]:
        """Blocks as unit vectors.

        Raises:
            ConfigError: blocks of another size.
        """
        if tuple(latents.shape[1:]) != self.block_shape:
            raise ConfigError(
                f"The reward model reads blocks of {list(self.block_shape)} (channels, frames, height, width); "
                f"got {list(latents.shape[1:])}."
            )
        x = self.stem(latents.to(self.dtype).flatten(1, 2))
        for pair in self.pairs:
            x = x + pair(x)
        return F.normalize(self.out(x), dim=-1)

    def embed_prompts(self, text: Float[Tensor, "prompts words text_width"]) -> Float[Tensor, "prompts space"]:
        """Prompt embeddings as unit vectors; zero rows that end a prompt may be missing.

        Raises:
            ConfigError: embeddings of another width, or of more words.
        """
        words, width = text.shape[1:]
        most, expected = self.config.words, self.config.text_width
        if words > most or width != expected:
            raise ConfigError(
                f"The reward model reads prompts of at most {most} words of width {expected}; got {[words, width]}."
            )
        return F.normalize(self.prompt(F.pad(text.to(self.dtype), (0, 0, 0, most - words))), dim=-1)

    def forward(
        self,
        latents: Float[Tensor, "blocks channels frames height width"],
        text: Float[Tensor, "blocks words text_width"],
    ) -> Float[Tensor, " blocks"]:
        """The cosine of each block with its prompt."""
        return (self.embed_blocks(latents) * self.embed_prompts(text)).sum(-1)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """From ``seed`` alone: variance 1 / fan-in for every matrix, biases 0."""
        if self.scale.is_meta:  # loading builds the module without memory first
            return
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                spread = math.sqrt(1 / module.weight[0].numel())
                module.weight.copy_(spread * torch.randn(module.weight.shape, generator=generator))
                assert module.bias is not None
                module.bias.zero_()


def _activated(features: int) -> tuple[nn.Module, ...]:
    return nn.GroupNorm(_GROUPS, features), nn.GELU(), nn.Conv2d(features, features, 3, padding=1)
