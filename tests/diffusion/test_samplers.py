"""Samplers on flows whose answer is known."""

import itertools

import pytest
import torch

from arl2.diffusion.flow import add_noise
from arl2.diffusion.samplers import (
    FewStep,
    MultiStep,
    published_unipc_grid,
    sample_euler,
    sample_few_step,
    sample_unipc,
    solver_sigmas,
)
from arl2.diffusion.schedule import NoiseSchedule, StepPlan
from arl2.errors import ConfigError

SHAPE = (1, 2, 1, 3, 3)
TARGET = torch.linspace(-1, 1, 18).view(SHAPE)


def noise(index: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(index))


def towards_target(x: torch.Tensor, timestep: float) -> torch.Tensor:
    """The exact flow when all data is one point: v = (x - x0) / sigma."""
    return (x - TARGET) / (timestep / 1000)


def test_solver_sigmas_fall_from_one_to_zero():
    sigmas = solver_sigmas(50, 5.0)
    assert (len(sigmas), sigmas[0], sigmas[-1]) == (51, 1.0, 0.0)
    assert all(a > b for a, b in itertools.pairwise(sigmas))


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_euler_is_exact_on_a_straight_flow(steps):
    found = sample_euler(towards_target, noise, sigmas=solver_sigmas(steps, 5.0), train_steps=1000)
    torch.testing.assert_close(found, TARGET, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("solver", "within"), [("unipc-diffusers", 1e-3), ("unipc", 3e-3)])
def test_unipc_follows_a_straight_flow(solver, within):
    """As near as its timesteps, which drop the fraction, are to its sigmas."""
    found = sample_unipc(towards_target, noise, steps=10, shift=5.0, train_steps=1000, solver=solver)
    torch.testing.assert_close(found, TARGET, rtol=within, atol=within)


@pytest.mark.parametrize("solver", ["unipc-diffusers", "unipc"])
@pytest.mark.parametrize("steps", [1, 2, 400, 1000])
def test_unipc_begins_at_the_start_of_its_grid(solver, steps):
    """Also where the first timesteps of many are equal."""
    seen = []

    def predict(x, timestep):
        seen.append(timestep)
        return torch.zeros_like(x)

    sample_unipc(predict, noise, steps=steps, shift=5.0, train_steps=1000, solver=solver)
    assert tuple(seen) == MultiStep(steps, solver=solver).timesteps_of(0)
    assert len(seen) == steps


def test_the_published_grid_is_not_diffusers():
    ours, theirs = (
        torch.tensor(MultiStep(50, solver=solver).timesteps_of(0)) for solver in ("unipc", "unipc-diffusers")
    )
    assert int((ours != theirs).sum()) == 27
    assert float((ours - theirs).abs().max()) == 4
    assert ours[:5].tolist() == [999, 995, 991, 987, 982]
    grid = published_unipc_grid(50, shift=5.0, train_steps=1000)
    assert (len(grid.timesteps), len(grid.sigmas), float(grid.sigmas[-1])) == (50, 51, 0.0)
    assert float(grid.sigmas[0]) == pytest.approx(0.9997998476, abs=1e-7)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_guidance_that_is_no_number_is_refused(scale):
    with pytest.raises(ConfigError, match="Got guidance_scale"):
        MultiStep(guidance_scale=scale)
    with pytest.raises(ConfigError, match="Got first_block_fresh_below nan"):
        FewStep(StepPlan((1000.0,)), first_block_fresh_below=float("nan"))


def test_few_step_renoises_with_its_own_draws():
    seen = []

    def predict(x: torch.Tensor, timestep: float) -> torch.Tensor:
        seen.append((timestep, x.clone()))
        return towards_target(x, timestep)

    schedule = NoiseSchedule()
    levels = schedule.warp([1000, 750, 500, 250])
    found = sample_few_step(predict, noise, timesteps=levels, schedule=schedule)
    torch.testing.assert_close(found, TARGET, rtol=1e-5, atol=1e-5)
    assert tuple(t for t, _ in seen) == levels
    for j, (timestep, x) in enumerate(seen):
        expected = noise(0) if j == 0 else add_noise(TARGET, noise(j), timestep / 1000)
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


def test_keeping_the_predicted_noise_is_an_euler_step():
    schedule = NoiseSchedule(shift=3.0)
    levels = (1000.0, 900.0, 750.0, 500.0)
    start = noise(0)

    def predict(x, timestep):
        return torch.sin(3 * x) + timestep / 1000

    kept = sample_few_step(predict, lambda j: start, timesteps=levels, schedule=schedule, fresh_below=0.0)
    sigmas = (*(schedule.sigma(t) for t in levels), 0.0)
    euler = sample_euler(predict, lambda j: start, sigmas=sigmas, train_steps=1000)
    torch.testing.assert_close(kept, euler, atol=2e-6, rtol=2e-6)


def test_noise_is_fresh_from_the_level_on_that_was_asked():
    schedule = NoiseSchedule(shift=3.0)
    drawn = []

    def draw(j):
        drawn.append(j)
        return noise(j)

    levels = (1000.0, 900.0, 750.0, 500.0)
    sample_few_step(lambda x, t: x, draw, timesteps=levels, schedule=schedule, fresh_below=0.8)
    assert drawn == [0, 3]  # from 0.75 down, and only where a level follows
