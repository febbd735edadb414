"""Pictures agree with what can be reckoned by hand, and with each other."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.errors import Arl2Error
from arl2.shapes.evaluator.silhouettes import shape_area
from arl2.shapes.world.curtain import sample_occlusions
from arl2.shapes.world.palette import MOTIONS, SHAPES, background_table, colour_table, wall_pixel
from arl2.shapes.world.renderer import cover_object, render, visible_share
from arl2.shapes.world.scene import Scenes, sample_scenes

MakeScene = Callable[..., Scenes]

# Places are the same bits however many are asked for. Mixing colours is a product and a sum, which some processors fuse
# but at the end of a row: a rounding of values up to 1. A place off by a hundredth of a pixel shows as 1e-2.
ROUNDING = {"rtol": 0, "atol": 1e-6}


def test_colours_at_the_object_the_ground_and_the_wall(one_scene: MakeScene) -> None:
    # At video frame 43 the object is at x = 32; the wall covers 45 to 71.
    picture = render(one_scene(wall=True, wall_centre=58.0), 1, start=43)[0, :, 0]
    assert torch.allclose(picture[:, 32, 32], colour_table()[0])
    assert torch.allclose(picture[:, 32, 10], background_table()[0])
    assert torch.allclose(picture[:, 5, 50], wall_pixel())


@pytest.mark.parametrize("shape", range(len(SHAPES)))
@pytest.mark.parametrize("size", [32, 64, 160])
def test_areas_are_those_of_geometry(one_scene: MakeScene, shape: int, size: int) -> None:
    scene = one_scene(shape=shape, place_x=0.5, radius=10.0)
    area = cover_object(scene, 1, size=size).sum() * (64 / size) ** 2
    assert area == pytest.approx(shape_area(shape, torch.tensor([10.0])).item(), rel=0.03)


def test_a_circle_has_the_area_of_pi_r_squared(one_scene: MakeScene) -> None:
    assert cover_object(one_scene(place_x=0.5), 1).sum() == pytest.approx(math.pi * 100, rel=0.005)


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_shapes_stay_in_their_box_and_are_symmetric(one_scene: MakeScene, shape: int) -> None:
    cover = cover_object(one_scene(shape=shape, place_x=0.5, place_y=0.5), 1)[0, 0]
    assert torch.allclose(cover, cover.flip(1), atol=1e-4)
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[21:43, 21:43] = False
    assert cover[outside].max() == 0


def test_a_triangle_points_up(one_scene: MakeScene) -> None:
    rows = cover_object(one_scene(shape=2, place_x=0.5), 1)[0, 0].sum(1)
    # The point is at y = 32 - 8.66, the base of length 20 at 32 + 8.66.
    assert rows[39] == pytest.approx(20 * (39.5 - 23.34) / 17.32, abs=0.3)
    assert rows[24] < 3


def test_a_wall_hides_what_passes_behind_it(one_scene: MakeScene) -> None:
    scene = one_scene(wall=True)
    hidden, bare = render(scene, 1, start=43), render(scene, 1, start=0)
    assert torch.equal(hidden, bare)
    assert visible_share(scene, 1, start=43) == 0


@pytest.mark.parametrize("motion", range(len(MOTIONS)))
def test_walls_stand_across_the_way(one_scene: MakeScene, motion: int) -> None:
    picture = render(one_scene(motion=motion, wall=True, wall_centre=14.0), 1)[0, :, 0]
    grey = torch.isclose(picture, wall_pixel()[:, None, None]).all(0)
    if MOTIONS[motion] in ("up", "down"):
        assert grey[14].all()
        assert not grey[:, 14].all()
    else:
        assert grey[:, 14].all()
        assert not grey[14].all()


def test_visible_share_follows_the_object_out_of_the_picture(one_scene: MakeScene) -> None:
    share = visible_share(one_scene(), 86)[0]
    assert share[0] == 0
    # Middle on the left edge: half of the circle shows.
    assert share[11] == pytest.approx(0.5, abs=0.01)
    assert share[43] == pytest.approx(1.0, abs=1e-3)


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 1000),
    top=st.integers(0, 63),
    left=st.integers(0, 63),
    height=st.integers(1, 64),
    width=st.integers(1, 64),
)
def test_a_crop_is_cut_from_the_whole(seed: int, top: int, left: int, height: int, width: int) -> None:
    height, width = min(height, 64 - top), min(width, 64 - left)
    scenes = sample_scenes(3, seed=seed)
    whole = render(scenes, 2, start=seed)
    part = render(scenes, 2, start=seed, crop=(top, left, height, width))
    torch.testing.assert_close(part, whole[..., top : top + height, left : left + width], **ROUNDING)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), start=st.integers(0, 20), frames=st.integers(1, 4))
def test_a_later_start_gives_the_later_pictures(seed: int, start: int, frames: int) -> None:
    scenes = sample_scenes(2, seed=seed, wall_speed_range=(-1.0, 1.0))
    later, whole = render(scenes, frames, start=start, size=16), render(scenes, start + frames, size=16)
    torch.testing.assert_close(later, whole[:, :, start:], **ROUNDING)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), which=st.integers(0, 8))
def test_a_picture_does_not_depend_on_its_batch(seed: int, which: int) -> None:
    scenes = sample_scenes(9, seed=seed)
    torch.testing.assert_close(render(scenes, 2)[which], render(scenes.select([which]), 2)[0], **ROUNDING)


def test_smaller_pictures_are_means_of_larger_ones() -> None:
    scenes = sample_scenes(6, seed=2)
    large, small = render(scenes, 3, size=128), render(scenes, 3, size=32)
    means = torch.nn.functional.avg_pool3d(large, (1, 4, 4))
    assert (means - small).abs().mean() < 0.01


@pytest.mark.parametrize("options", [{"size": 0}, {"crop": (0, 0, 65, 1)}, {"crop": (-1, 0, 2, 2)}, {"start": -1}])
def test_impossible_pictures_are_refused(one_scene: MakeScene, options: dict) -> None:
    with pytest.raises(Arl2Error):
        render(one_scene(), 2, **options)


@pytest.mark.parametrize(("hidden", "lead"), [(1, 24), (10, 12), (40, 24), (90, 60), (200, 24)])
def test_occlusions_last_as_long_as_asked(hidden: int, lead: int) -> None:
    share = visible_share(sample_occlusions(24, seed=1, hidden=hidden, lead=lead), lead + hidden + 40)
    assert share[:, lead : lead + hidden].max() < 0.01
    assert share[:, 0].min() > 0.9
    # The wall eats the object within some video frames, and gives it back likewise.
    assert share[:, : lead - 4].amin() > 0
    assert share[:, lead + hidden + 4 :].amax(1).min() > 0.3


def test_too_short_an_occlusion_is_refused() -> None:
    with pytest.raises(Arl2Error, match="at least 1 after"):
        sample_occlusions(1, seed=0, hidden=0)
