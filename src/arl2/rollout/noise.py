"""Noise belongs to the stream: a pure function of (seed, block, number), whatever the device, batch or process.

So a stream that is saved and resumed elsewhere, a fork, and an uninterrupted run see the same bits.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import ConfigError, GeometryError
from arl2.model.settings import seed_number


@runtime_checkable
class NoiseSource(Protocol):
    """Where a rollout takes its noise from."""

    def check(self, batch: int) -> None:
        """Raise ``ConfigError`` for a batch that this source has no noise for."""
        ...

    def candidate(self, number: int) -> "NoiseSource":
        """Other noise for the same samples, for best-of-N; candidate 0 has the source's own."""
        ...

    def sample(
        self, block: int, index: int, shape: tuple[int, ...]
    ) -> Float[Tensor, "batch channels frames height width"]:
        """Noise ``index`` of block ``block``: 0 is the starting noise, later ones re-noise; float32 on the CPU."""
        ...


class SeededNoise:
    """Standard normal noise keyed by (a sample's seed, block, candidate, number).

    numpy's Philox takes the key whole, so no two blocks of a long stream ever share a stream of numbers (torch's CPU
    generator keeps 32 bits of a seed).

    Args:
        seeds: one per sample of the batch; a sample's noise does not depend on the others.
        number: of the candidate it is for.

    Raises:
        ConfigError: no seed, or one outside [0, 2**64).
    """

    def __init__(self, seeds: Sequence[int], *, number: int = 0) -> None:
        if not seeds:
            raise ConfigError("Got no seeds; give one per sample, whole numbers from 0 to 2**64 - 1.")
        self.seeds, self.number = tuple(seed_number(seed) for seed in seeds), number

    @staticmethod
    def for_batch(seed: int, batch: int) -> "SeededNoise":
        """Seeds ``seed, seed + 1, ...`` for the samples of a batch."""
        return SeededNoise([(seed + i) % 2**64 for i in range(batch)])

    def check(self, batch: int) -> None:
        if batch != len(self.seeds):
            raise ConfigError(f"Got {len(self.seeds)} seeds for a batch of {batch}; give one per sample.")

    def candidate(self, number: int) -> "SeededNoise":
        return SeededNoise(self.seeds, number=number)

    def sample(
        self, block: int, index: int, shape: tuple[int, ...]
    ) -> Float[Tensor, "batch channels frames height width"]:
        self.check(shape[0])
        samples = []
        for seed in self.seeds:
            key = np.array([seed, block], dtype=np.uint64)
            # The counter's top words hold candidate and number, so no two samples of a block overlap.
            counter = np.array([0, 0, self.number, index], dtype=np.uint64)
            generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
            samples.append(torch.from_numpy(generator.standard_normal(shape[1:], dtype=np.float32)))
        return torch.stack(samples)


class GivenNoise:
    """Given noise, for comparisons with recorded rollouts.

    Args:
        start: starting noise of the whole clip ``[B, C, F, h, w]``.
        renoise: fresh noise by (block, number of the re-noising, from 0).
        block_frames: frames of a block.
    """

    def __init__(
        self,
        start: Float[Tensor, "batch channels frames height width"],
        renoise: Mapping[tuple[int, int], Tensor],
        block_frames: int,
    ) -> None:
        self.start, self.renoise, self.block_frames = start, renoise, block_frames

    def check(self, batch: int) -> None:
        if batch != self.start.shape[0]:
            raise ConfigError(
                f"Got noise for {self.start.shape[0]} samples and a batch of {batch}; give noise for every sample."
            )

    def candidate(self, number: int) -> "GivenNoise":
        if number:
            raise ConfigError("Given noise is for one candidate of each block; leave first_block_candidates at 1.")
        return self

    def sample(
        self, block: int, index: int, shape: tuple[int, ...]
    ) -> Float[Tensor, "batch channels frames height width"]:
        if index == 0:
            given = self.start[:, :, block * self.block_frames : (block + 1) * self.block_frames]
        elif (block, index - 1) in self.renoise:
            given = self.renoise[block, index - 1]
        else:
            raise GeometryError(
                f"No noise was given for re-noising {index - 1} of block {block}; add renoise[{block}, {index - 1}]."
            )
        if tuple(given.shape) != shape:
            raise GeometryError(
                f"The noise given for block {block} is {list(given.shape)}, but the block is {list(shape)}."
            )
        return given
