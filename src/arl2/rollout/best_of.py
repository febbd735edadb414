"""Best-of-N: first blocks are sampled side by side, and a reward model keeps the one that fits its prompt best.

All later blocks continue the first one, which alone has nothing but the prompt to follow; a few more samples of it cost
little of a whole video. This is the random search of arXiv 2501.09732, for one block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import ConfigError
from arl2.model.reward_model import RewardModel
from arl2.rollout.noise import NoiseSource


@dataclass(frozen=True)
class BestOf:
    """How a first block is chosen.

    Attributes:
        reward_model: scores blocks against prompts.
        candidates: first blocks sampled for each video, 2 or more.
    """

    reward_model: RewardModel
    candidates: int

    @torch.no_grad()
    def choose(
        self,
        candidates: Float[Tensor, "candidates channels frames height width"],
        text: Float[Tensor, "batch words text_width"],
    ) -> Float[Tensor, "batch channels frames height width"]:
        """The best candidate of each sample; candidate ``k`` of sample ``i`` is row ``k B + i``."""
        count = len(text)
        blocks = self.reward_model.embed_blocks(candidates).unflatten(0, (self.candidates, count))
        scores = (blocks * self.reward_model.embed_prompts(text)).sum(-1)
        best = scores.argmax(0)
        return candidates.unflatten(0, (self.candidates, count))[best, torch.arange(count, device=best.device)]


def best_of(reward_model: RewardModel | None, candidates: int) -> BestOf | None:
    """None for a single sample; ``ConfigError`` for several candidates without a reward model."""
    if candidates == 1:
        return None
    if reward_model is None:
        raise ConfigError(
            f"Got first_block_candidates {candidates}, which needs a reward model to choose, and this model has none; "
            "leave first_block_candidates at 1."
        )
    return BestOf(reward_model, candidates)


class SideBySide:
    """A ``NoiseSource`` for candidates: several sources, each for the whole batch, concatenated."""

    def __init__(self, sources: Sequence[NoiseSource]) -> None:
        self.sources = tuple(sources)

    def check(self, batch: int) -> None:
        for source in self.sources:
            source.check(batch // len(self.sources))

    def candidate(self, number: int) -> "SideBySide":
        return SideBySide([source.candidate(number) for source in self.sources])

    def sample(
        self, block: int, index: int, shape: tuple[int, ...]
    ) -> Float[Tensor, "batch channels frames height width"]:
        each = (shape[0] // len(self.sources), *shape[1:])
        return torch.cat([source.sample(block, index, each) for source in self.sources])
