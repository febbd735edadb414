"""Scenes to learn memory from: colours are left out of captions, and every object is hidden and comes back."""

import pytest
import torch

from arl2.errors import Arl2Error
from arl2.shapes.prompts.captions import captions_of
from arl2.shapes.world.occluded import CURTAINS, RUN, sample_occluded_scenes
from arl2.shapes.world.palette import COLOURS
from arl2.shapes.world.renderer import visible_share
from arl2.shapes.world.scene import Scenes

COUNT = 2 * RUN * len(CURTAINS)


def same(a: Scenes, b: Scenes) -> bool:
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_a_scene_depends_on_its_number_alone():
    whole = sample_occluded_scenes(COUNT, seed=3)
    assert len(whole) == COUNT
    part = sample_occluded_scenes(2 * RUN, seed=3, first=3 * RUN)
    assert same(part, whole.select(slice(3 * RUN, 5 * RUN)))
    assert not same(part, sample_occluded_scenes(2 * RUN, seed=4, first=3 * RUN))


def test_no_caption_names_a_colour_and_every_scene_has_a_wall():
    scenes = sample_occluded_scenes(COUNT, seed=0)
    assert scenes.wall.all()
    assert not any(set(text.split()) & set(COLOURS) for text in captions_of(scenes))


def test_curtains_hide_for_as_long_as_they_say():
    scenes = sample_occluded_scenes(COUNT, seed=1)
    for kind, (hidden, lead) in enumerate(CURTAINS):
        run = scenes.select(slice((2 * kind + 1) * RUN, (2 * kind + 2) * RUN))
        share = visible_share(run, 105)
        assert share[:, lead : lead + hidden].max() < 0.01
        assert (share[:, :lead].amax(1) > 0.9).all()
        assert (share[:, lead + hidden :].amax(1) > 0.5).all()


@pytest.mark.parametrize(("count", "first"), [(RUN + 1, 0), (RUN, 3), (0, 0), (RUN, -RUN)])
def test_numbers_that_cannot_be(count, first):
    with pytest.raises(Arl2Error, match=f"give multiples of {RUN}"):
        sample_occluded_scenes(count, seed=0, first=first)
