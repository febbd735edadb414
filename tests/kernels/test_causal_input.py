"""The input of a causal convolution: every form against the plain one, and what torch asks of a custom operation."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arl2.kernels.causal_input import causal_input, interleaved
from arl2.kernels.causal_input.eager import causal_input_eager
from arl2.kernels.causal_input.naive import causal_input_naive
from support import randn

# Rounded once, from float32: to the last digit of half precision, and to the order of sums in float32.
ERRORS = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


@st.composite
def inputs(draw: st.DrawFn) -> tuple[Any, ...]:
    """Arguments in the order of the forms; sizes with and without remainders, all options."""
    dtype = draw(st.sampled_from(list(ERRORS)))
    batch, frames, rows, columns = (draw(st.integers(1, most)) for most in (2, 3, 4, 5))
    channels, p = draw(st.sampled_from([1, 3, 8, 20])), draw(st.integers(1, 2))
    lookback, margin = draw(st.sampled_from([(0, 0), (0, 1), (1, 0), (2, 0)]))
    size = (batch, frames, rows, p, columns, p, channels)
    picture = (rows * p, columns * p, channels)

    def some(*shape: int) -> Tensor | None:
        return randn(*shape, seed=draw(st.integers(0, 9)), dtype=dtype) if draw(st.booleans()) else None

    x = randn(*size, dtype=dtype)
    past = some(batch, lookback, *picture)
    rest = (lookback, margin, draw(st.booleans()), draw(st.booleans()))
    return x, some(channels), some(batch, frames, *picture), some(channels), past, *rest


@settings(max_examples=60, deadline=None)
@given(inputs())
def test_few_passes_are_the_plain_operations(arguments: tuple[Any, ...]) -> None:
    dtype = arguments[0].dtype
    for ours, twin in zip(causal_input_eager(*arguments), causal_input_naive(*arguments), strict=True):
        assert (ours.shape, ours.dtype) == (twin.shape, twin.dtype)
        assert torch.allclose(ours, twin, rtol=ERRORS[dtype], atol=ERRORS[dtype])


def test_zeros_stay_zeros() -> None:
    x, gamma = interleaved(torch.zeros(1, 1, 2, 2, 4)), torch.ones(4)
    _, frames, kept = causal_input(x, gamma=gamma, lookback=2, silu=True)
    assert not frames.any()
    assert kept.shape == (1, 2, 2, 2, 4)


def test_a_frame_and_its_past_come_in_order() -> None:
    x, past = randn(1, 1, 2, 2, 4, seed=1), randn(1, 2, 2, 2, 4, seed=2)
    _, frames, kept = causal_input(interleaved(x), past=past, lookback=2)
    assert torch.equal(frames, torch.cat((past, x), dim=1))
    assert torch.equal(kept, frames[:, 1:])


def test_the_gradient_is_that_of_the_plain_operations() -> None:
    x, residual = (randn(1, 2, 3, 3, 4, seed=i, dtype=torch.float64).requires_grad_() for i in range(2))
    gamma, past = randn(4, dtype=torch.float64).requires_grad_(), randn(1, 2, 3, 3, 4, dtype=torch.float64)

    def run(x: Tensor, residual: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
        options = {"past": past, "lookback": 2, "silu": True, "want_sum": True}
        return causal_input(interleaved(x), residual=residual, gamma=gamma, **options)

    assert torch.autograd.gradcheck(run, (x, residual, gamma))


@pytest.mark.parametrize("p", [1, 2])
def test_torch_accepts_the_operation(p: int) -> None:
    x = randn(2, 2, 3, p, 2, p, 8)
    arguments = (x, randn(8), None, randn(8), None, 2, 0, True, True)
    torch.library.opcheck(torch.ops.arl2.causal_input.default, arguments)
