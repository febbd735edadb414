"""Pixels, frames, tokens, blocks."""

import doctest
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import arl2.geometry
from arl2.errors import GeometryError
from arl2.geometry import FrameRange, latent_frames_of, split_blocks, token_grid, video_frames_of


def test_the_published_size_gives_the_published_tokens():
    grid = token_grid(480 // 8, 832 // 8, (1, 2, 2))
    assert (grid.rows, grid.columns, grid.tokens) == (30, 52, 30 * 52)


@pytest.mark.parametrize(("height", "width", "said"), [(7, 8, "height 7"), (8, 9, "width 9"), (0, 8, "height 0")])
def test_a_latent_that_does_not_fit_the_patch(height, width, said):
    with pytest.raises(GeometryError, match=f"{said} is not a multiple of the patch size 2; use"):
        token_grid(height, width, (1, 2, 2))


@given(blocks=st.integers(1, 50), size=st.integers(1, 5), first=st.integers(1, 5))
def test_blocks_tile_the_clip(blocks, size, first):
    first = min(first, size)
    frames = first + (blocks - 1) * size
    parts = split_blocks(frames, size, first)
    assert parts[0] == FrameRange(0, first)
    assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
    assert [len(part) for part in parts[1:]] == [size] * (blocks - 1)
    assert parts[-1].stop == frames


@pytest.mark.parametrize(
    ("frames", "size", "first", "said"),
    [
        (20, 3, None, "20 latent frames do not fit blocks of 3; use 18 or 21"),
        (2, 3, None, "use 3"),
        (20, 3, 1, "after a first one of 1; use 19 or 22"),
        (0, 3, None, "0 latent frames"),
        (9, 3, 4, "must have 1 to 3"),
    ],
)
def test_frames_that_do_not_fit_name_the_nearest_that_do(frames, size, first, said):
    with pytest.raises(GeometryError, match=said):
        split_blocks(frames, size, first)


def test_the_examples_in_the_docstrings():
    results = doctest.testmod(arl2.geometry)
    assert (results.failed, results.attempted) == (0, 2)


@given(first=st.integers(0, 100), latent=st.integers(1, 10**6))
def test_video_and_latent_frames_are_inverse(first, latent):
    assert latent_frames_of(first, video_frames_of(first, latent, 4), 4) == latent


def test_video_frames_that_are_no_whole_latent_frames():
    assert latent_frames_of(0, 81, 4) == 21
    with pytest.raises(GeometryError, match=r"80 video frames came, but here their number must be 1 \+ 4 n"):
        latent_frames_of(0, 80, 4)
