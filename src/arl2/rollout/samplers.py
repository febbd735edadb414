"""The samplers of a rollout, those of :mod:`arl2.diffusion.samplers`, and a callback after every denoising pass."""

from collections.abc import Callable

from torch import Tensor

from arl2.diffusion.samplers import FewStep as FewStep
from arl2.diffusion.samplers import MultiStep as MultiStep

Sampler = FewStep | MultiStep

# Called after every denoising pass with the block, the pass within it, the timestep and the noisy latents of the pass.
OnStep = Callable[[int, int, float, Tensor], None]
