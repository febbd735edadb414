"""Noise levels and step lists, against the published formulas and hand counts."""

import math

import pytest
import torch

from arl2.diffusion.flow import add_noise, clean_to_velocity, velocity_to_clean
from arl2.diffusion.schedule import NoiseSchedule, StepPlan
from arl2.errors import ConfigError


def test_levels_by_their_formula():
    schedule = NoiseSchedule(shift=5.0)
    for j in (0, 1, 500, 999):
        u = 1 - j / 1000
        assert math.isclose(schedule.sigmas()[j], 5 * u / (1 + 4 * u), rel_tol=1e-12)


def test_the_published_step_list_warps_to_the_published_levels():
    levels = NoiseSchedule().warp([1000, 750, 500, 250])
    assert levels == pytest.approx((1000, 937.5, 2500 / 3, 625), abs=1e-9)


def test_sigma_is_that_of_the_nearest_level():
    schedule = NoiseSchedule()
    assert schedule.sigma(1000.0) == 1.0
    assert schedule.sigma(937.5) == pytest.approx(0.9375)
    assert schedule.sigma(0.0) == pytest.approx(float(schedule.sigmas()[-1]))  # 0 is no level: the nearest is the last
    many = torch.tensor([[1000.0, 625.0]])
    assert schedule.sigmas_at(many).tolist() == [[1.0, pytest.approx(0.625)]]


def test_weights_sum_to_the_number_of_levels_and_peak_in_the_middle():
    weights = NoiseSchedule().training_weights()
    assert float(weights.sum()) == pytest.approx(1000)
    assert abs(float(NoiseSchedule().timesteps()[weights.argmax()]) - 500) < 5
    assert float(weights.min()) == 0


@pytest.mark.parametrize(
    ("steps", "first", "block", "expected"),
    [
        ([1000, 750, 500, 250], None, 0, (1000, 750, 500, 250)),
        ([1000, 500], [1000, 750, 500, 250], 0, (1000, 750, 500, 250)),
        ([1000, 500], [1000, 750, 500, 250], 1, (1000, 500)),
        ([1000], [1000, 750, 500, 250], 5, (1000,)),
        ([1000, 750, 500, 250, 0], None, 0, (1000, 750, 500, 250)),  # a closing 0 marks the clean sample
    ],
)
def test_step_plans_of_the_published_students(steps, first, block, expected):
    plan = StepPlan.from_steps(steps, first, schedule=NoiseSchedule(), warp=False)
    assert plan.of_block(block) == expected


@pytest.mark.parametrize("steps", [[], [500, 750], [1000, 1000], [-5], [math.nan], [math.inf]])
def test_step_lists_that_cannot_be_are_refused(steps):
    with pytest.raises(ConfigError, match="fall strictly"):
        StepPlan.from_steps(steps, schedule=NoiseSchedule(), warp=False)


def test_levels_handed_out_are_the_callers_own():
    NoiseSchedule(shift=7.0).sigmas().mul_(0)
    assert NoiseSchedule(shift=7.0).sigma(1000.0) == 1.0


@pytest.mark.parametrize("step", [1001, -1, 12.5, math.inf, math.nan])
def test_a_step_that_cannot_be_warped_is_refused(step):
    with pytest.raises(ConfigError, match="whole number from 0 to 1000"):
        NoiseSchedule().warp([step])


def test_a_schedule_that_cannot_be_is_refused():
    for shift in (0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="shift > 0"):
            NoiseSchedule(shift=shift)


def test_velocity_and_clean_sample_are_inverse():
    clean, noise = torch.randn(2, 3), torch.randn(2, 3)
    for sigma in (1.0, 0.625, torch.tensor([[0.1], [0.9]])):
        noisy = add_noise(clean, noise, sigma)
        torch.testing.assert_close(velocity_to_clean(noisy, clean_to_velocity(clean, noise), sigma), clean)
