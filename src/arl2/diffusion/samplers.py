"""From noise to a clean block: few-step re-noising (distilled students) and ODE solvers (multi-step models).

A sampler sees the model as ``predict(x, timestep) -> velocity`` and the noise as ``noise(j) -> tensor`` (draw 0 is the
start, draw ``j`` the fresh noise of re-noising ``j - 1``), so it knows nothing of memory, prompts or seeds.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.diffusion.flow import add_noise, velocity_to_clean
from arl2.diffusion.schedule import NoiseSchedule, shift_sigma

Predict = Callable[[Tensor, float], Tensor]
Noise = Callable[[int], Tensor]


def sample_few_step(
    predict: Predict,
    noise: Noise,
    *,
    levels: Sequence[float],
    schedule: NoiseSchedule,
    fresh_below: float = 1.0,
) -> Float[Tensor, "batch channels frames height width"]:
    """Predict the clean block, re-noise it to the next level, and so on; at the last level it is the result.

    Args:
        predict, noise: see above.
        levels: timesteps, falling.
        schedule: says their noise levels.
        fresh_below: from noise levels above it the noise that was predicted is kept (a step of DDIM, arXiv 2010.02502),
            from others fresh noise is drawn. 1: always fresh, as the published few-step students.
    """
    x = noise(0)
    for j, timestep in enumerate(levels):
        sigma = schedule.sigma(timestep)
        velocity = predict(x, timestep)
        clean = velocity_to_clean(x, velocity, sigma)
        if j + 1 == len(levels):
            return clean
        kept = sigma > fresh_below
        renoise = clean + velocity.to(clean.dtype) if kept else noise(j + 1)
        x = add_noise(clean, renoise, schedule.sigma(levels[j + 1]))
    raise AssertionError("StepPlan guarantees at least one level")


def solver_sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """``steps + 1`` shifted sigmas from 1 to 0, evenly spaced before the shift."""
    u = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    return tuple(shift_sigma(u, shift).tolist())


def sample_euler(
    predict: Predict, noise: Noise, *, sigmas: Sequence[float], train_steps: int
) -> Float[Tensor, "batch channels frames height width"]:
    """Explicit Euler along the flow, from ``sigmas[0]`` (1: pure noise) to ``sigmas[-1]`` (0)."""
    x = noise(0)
    for sigma, following in itertools.pairwise(sigmas):
        velocity = predict(x, train_steps * sigma)
        x = (x.double() + (following - sigma) * velocity.double()).to(x.dtype)
    return x


def sample_unipc(
    predict: Predict, noise: Noise, *, steps: int, shift: float, train_steps: int
) -> Float[Tensor, "batch channels frames height width"]:
    """UniPC, order 2, as the published multi-step models use it; diffusers' well-tested solver does the steps."""
    from diffusers import UniPCMultistepScheduler

    solver = UniPCMultistepScheduler(
        num_train_timesteps=train_steps,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        solver_order=2,
    )
    x = noise(0)
    solver.set_timesteps(steps, device=x.device)
    for timestep in solver.timesteps:
        x = solver.step(predict(x, float(timestep)), timestep, x, return_dict=False)[0]
    return x
