"""Colours by area: right on true renders, blind to what is no object, and undisturbed by a blotched wall."""

import pytest
import torch

from arl2.errors import Arl2Error
from arl2.shapes.evaluator.coloured import coloured_area, shown_colour
from arl2.shapes.world.curtain import sample_occlusions
from arl2.shapes.world.palette import BACKGROUNDS, COLOURS, to_pixel_range
from arl2.shapes.world.renderer import render
from arl2.shapes.world.scene import sample_scenes

NAMES = tuple(COLOURS)


def plain(rgb: tuple[int, int, int], frames: int = 8) -> torch.Tensor:
    return to_pixel_range([rgb])[0][:, None, None, None].expand(3, frames, 64, 64).clone()


def test_true_renders_show_their_colour():
    scenes = sample_scenes(48, seed=5, wall_probability=0.0)
    seen = [shown_colour(video) for video in render(scenes, 33)]
    assert seen == [NAMES[index] for index in scenes.colour.tolist()]


def test_area_is_the_share_of_the_picture():
    video = plain(BACKGROUNDS["navy"])
    video[:, :, 10:20, 10:26] = to_pixel_range([COLOURS["yellow"]])[0][:, None, None, None]
    area = coloured_area(video)
    assert area.shape == (8, len(NAMES))
    assert area[:, NAMES.index("yellow")].tolist() == pytest.approx([160 / 4096] * 8)
    assert area.sum().item() == pytest.approx(8 * 160 / 4096)


@pytest.mark.parametrize("rgb", [*BACKGROUNDS.values(), (128, 128, 128), (90, 80, 110), (200, 190, 170)])
def test_what_is_no_object_shows_none(rgb):
    """Backgrounds, walls, and the blotches between them."""
    assert shown_colour(plain(rgb)) is None


def test_an_object_beside_a_blotched_wall_is_seen_and_a_hidden_one_is_not():
    scenes = sample_occlusions(6, seed=0, hidden=24, lead=24)
    videos = render(scenes, 96)
    draw = torch.Generator().manual_seed(0)
    grey = (videos - 0.004).abs().amax(1, keepdim=True) < 0.02
    blotched = torch.where(grey, 0.12 * torch.randn(videos.shape, generator=draw), videos)
    for video, colour in zip(blotched, scenes.colour.tolist(), strict=True):
        assert shown_colour(video[:, 60:]) == NAMES[colour]
        assert shown_colour(video[:, 28:44]) is None


def test_no_majority_is_no_colour():
    video = plain(BACKGROUNDS["black"], frames=12)
    for frame in range(12):
        name = NAMES[frame % 3]
        video[:, frame, :20, :20] = to_pixel_range([COLOURS[name]])[0][:, None, None]
    assert shown_colour(video) is None


def test_too_few_video_frames_are_refused():
    with pytest.raises(Arl2Error, match="4 video frames are too few"):
        shown_colour(plain(COLOURS["red"], frames=4))
