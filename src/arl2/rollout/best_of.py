"""Best of N: a first block is drawn several times side by side, and a verifier keeps the one that fits its prompt.

Everything later in a stream stands on its first block, and the first block alone has nothing but the prompt to go by. A
few small batches more there cost little of a whole video. This is the random search of arXiv 2501.09732, for one block.
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
        verifier: that compares blocks with prompts.
        candidates: first blocks drawn for each sample, 2 or more.
    """

    verifier: RewardModel
    candidates: int

    @torch.no_grad()
    def choose(
        self,
        drawn: Float[Tensor, "drawn channels frames height width"],
        text: Float[Tensor, "batch words text_width"],
    ) -> Float[Tensor, "batch channels frames height width"]:
        """The best candidate of each sample; candidate ``k`` of sample ``i`` is row ``k B + i``."""
        count = len(text)
        blocks = self.verifier.embed_blocks(drawn).unflatten(0, (self.candidates, count))
        scores = (blocks * self.verifier.embed_prompts(text)).sum(-1)
        best = scores.argmax(0)
        return drawn.unflatten(0, (self.candidates, count))[best, torch.arange(count, device=best.device)]


def best_of(verifier: RewardModel | None, candidates: int) -> BestOf | None:
    """How first blocks are chosen; None where each is drawn once.

    Raises:
        ConfigError: several candidates and nothing that chooses.
    """
    if candidates == 1:
        return None
    if verifier is None:
        raise ConfigError(
            f"{candidates} candidates of the first block need a verifier that chooses, and this model has none; leave "
            "first_block_candidates at 1."
        )
    return BestOf(verifier, candidates)


class SideBySide:
    """Noise for candidates: that of several sources, one below the other; a ``NoiseSource``.

    Args:
        sources: each for the whole batch.
    """

    def __init__(self, sources: Sequence[NoiseSource]) -> None:
        self.sources = tuple(sources)

    def check(self, batch: int) -> None:
        """As many samples in all, or ``ConfigError``."""
        for source in self.sources:
            source.check(batch // len(self.sources))

    def candidate(self, number: int) -> "SideBySide":
        """The same for another candidate of each."""
        return SideBySide([source.candidate(number) for source in self.sources])

    def draw(
        self, block: int, index: int, shape: tuple[int, ...]
    ) -> Float[Tensor, "batch channels frames height width"]:
        each = (shape[0] // len(self.sources), *shape[1:])
        return torch.cat([source.draw(block, index, each) for source in self.sources])
