"""Rotations from positions: exact at any frame, relative, norm-preserving."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.kernels.rope import THETA, Rotation, rope_angles, split_pairs
from support import randn


@pytest.mark.parametrize("frame", [0, 1, 1023, 1024, 10_000_000])
def test_exact_at_any_frame(frame):
    head_dim = 128
    pairs, _, _ = split_pairs(head_dim)
    rotation = Rotation(rope_angles([frame], 1, 1, head_dim))
    mpmath.mp.dps = 40
    for i in (0, 1, pairs // 2, pairs - 1):
        angle = frame * mpmath.power(THETA, mpmath.mpf(-i) / pairs)
        assert abs(rotation.cos[0, 0, i].item() - mpmath.cos(angle)) < 2e-7
        assert abs(rotation.sin[0, 0, i].item() - mpmath.sin(angle)) < 2e-7


@pytest.mark.parametrize(
    ("head_dim", "expected"), [(128, (22, 21, 21)), (16, (4, 2, 2)), (2, (1, 0, 0)), (12, (2, 2, 2))]
)
def test_pairs_are_shared_among_the_axes(head_dim, expected):
    assert split_pairs(head_dim) == expected


def test_tokens_are_in_raster_order():
    rows, columns = 2, 3
    angles = rope_angles([5, 6], rows, columns, 12).unflatten(0, (2, rows, columns))
    # The first pair of every axis turns by the position itself.
    frame, row, column = angles[..., 0], angles[..., 2], angles[..., 4]
    assert frame[1, 0, 0] == 6
    assert row[0, 1, 2] == 1
    assert column[1, 0, 2] == 2


def test_turns_pairs_like_complex_numbers():
    x = randn(2, 6, 3, 12)
    angles = rope_angles([4], 2, 3, 12)
    turned = (
        torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)[:, None]
    )
    torch.testing.assert_close(
        Rotation(angles)(x), torch.view_as_real(turned).flatten(-2).float(), rtol=1e-5, atol=1e-6
    )


@settings(deadline=None, max_examples=20)
@given(shift=st.integers(0, 10_000_000), distance=st.integers(0, 20))
def test_scores_depend_on_distance_alone(shift, distance):
    q, k = randn(1, 1, 1, 12, seed=1), randn(1, 1, 1, 12, seed=2)

    def score(start: int) -> torch.Tensor:
        later, earlier = (Rotation(rope_angles([f], 1, 1, 12)) for f in (start + distance, start))
        return (later(q) * earlier(k)).sum()

    torch.testing.assert_close(score(shift), score(0), rtol=1e-5, atol=1e-5)


def test_half_precision_is_rotated_in_float32():
    x = randn(1, 1, 1, 12).bfloat16()
    rotation = Rotation(rope_angles([777], 1, 1, 12))
    assert rotation(x).dtype == torch.bfloat16
    assert torch.equal(rotation(x), rotation(x.float()).bfloat16())
