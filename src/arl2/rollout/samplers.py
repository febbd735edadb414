"""The samplers of a rollout: those of :mod:`arl2.diffusion.samplers`, perhaps with a callback after every pass."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from arl2.diffusion.samplers import FewStep as FewStep
from arl2.diffusion.samplers import MultiStep as MultiStep
from arl2.diffusion.samplers import Noise, Predict

PlainSampler = FewStep | MultiStep

# Called after every denoising pass with the block, the pass within it, the timestep and the noisy latents of the pass.
OnStep = Callable[[int, int, float, Tensor], None]


@dataclass(frozen=True)
class ObservedSampler:
    """A sampler that calls ``on_step`` after every denoising pass."""

    inner: PlainSampler
    on_step: OnStep

    @property
    def guidance_scale(self) -> float:
        return self.inner.guidance_scale

    def sample(self, predict: Predict, noise: Noise, block: int) -> Tensor:
        """The clean block."""
        passes = itertools.count()

        def observed(x: Tensor, timestep: float) -> Tensor:
            velocity = predict(x, timestep)
            self.on_step(block, next(passes), timestep, x)
            return velocity

        return self.inner.sample(observed, noise, block)


Sampler = PlainSampler | ObservedSampler
