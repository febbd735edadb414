"""Paired noise: its strongest place is where it was asked to be, and it is still plain noise."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from arl2.shapes.renderer import visible_share
from arl2.shapes.world import sample_scenes, trajectory
from arl2.training.coupling import object_places, paired_noise, strongest_places


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 3), st.integers(2, 6), st.integers(2, 9))
def test_the_strongest_place_is_moved_and_nothing_else_changes(seed, clips, frames, height, width):
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(clips, 4, frames, height, width, generator=draw)
    places = torch.stack([torch.randint(n, (clips,), generator=draw) for n in (height, width)], dim=1)
    paired = paired_noise(noise, places)
    assert torch.equal(strongest_places(paired), places)
    assert torch.equal(paired.flatten(3).sort().values, noise.flatten(3).sort().values)
    assert torch.equal(paired_noise(paired, strongest_places(noise)), noise)


def test_over_uniform_places_it_is_independent_standard_noise():
    draw = torch.Generator().manual_seed(0)
    count = 20_000
    noise = torch.randn(count, 2, 1, 3, 4, generator=draw)
    places = torch.stack([torch.randint(n, (count,), generator=draw) for n in (3, 4)], dim=1)
    flat = paired_noise(noise, places).flatten(1)
    bound = 5 / count**0.5
    assert flat.mean(0).abs().max() < bound
    assert (torch.cov(flat.T) - torch.eye(flat.shape[1])).abs().max() < 2 * bound


def test_object_places_hold_the_middle_of_the_object():
    scenes = sample_scenes(200, seed=1, wall_probability=0.0)
    places = object_places(scenes, 8, 8)
    assert places.min() >= 0
    assert places.max() <= 7
    middle = trajectory(scenes, 1)[:, 0].flip(-1)  # row, column
    inside = ((middle >= 0) & (middle < 64)).all(1) & (visible_share(scenes, 1)[:, 0] > 0)
    assert inside.sum() > 100
    assert ((middle[inside] / 8).floor().long() == places[inside]).all()
