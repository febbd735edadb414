"""The weight average and the learning rate: the formulas."""

import pytest
import torch
from torch import nn

from arl2.training.engine.ema import WeightAverage
from arl2.training.engine.optimizer import learning_rate_factor


def test_average_follows_its_formula() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = WeightAverage({"p": parameter}, decay=0.25)
    expected = parameter.detach().clone()
    for count in range(1, 8):
        with torch.no_grad():
            parameter.add_(1.0)
        average.update(count)
        decay = min(0.25, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * parameter.detach()
        torch.testing.assert_close(average.tensors["p"], expected)


def test_average_is_float32_and_is_put_in_place_for_a_while() -> None:
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    average = WeightAverage({"p": parameter}, decay=0.999)
    assert average.tensors["p"].dtype == torch.float32
    with torch.no_grad():
        parameter.fill_(3.0)
    with average.applied():
        assert parameter.eq(1.0).all()
    assert parameter.eq(3.0).all()


def test_warm_up_then_cosine() -> None:
    def at(step: int, progress: float) -> float:
        return learning_rate_factor(step, progress, warmup_steps=10, final=0.1)

    assert at(0, 0.0) == pytest.approx(0.1)
    assert at(9, 0.0) == pytest.approx(1.0)
    assert at(500, 0.5) == pytest.approx(0.55)
    assert at(1000, 1.0) == pytest.approx(0.1)
    assert at(1000, 1.7) == pytest.approx(0.1)
    assert learning_rate_factor(0, 0.0, warmup_steps=0, final=0.0) == 1.0
