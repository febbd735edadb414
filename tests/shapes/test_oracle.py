"""The oracle sees what is there, through noise and blur, and sees planted mistakes as what they are."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from arl2.errors import Arl2Error
from arl2.shapes.evaluator.oracle import Reading, read, read_all
from arl2.shapes.evaluator.scoring import score_readings
from arl2.shapes.prompts.request import ATTRIBUTES, requests_of
from arl2.shapes.world.curtain import sample_occlusions
from arl2.shapes.world.palette import COLOURS, MOTIONS, SHAPES, background_table, colour_table, wall_pixel
from arl2.shapes.world.renderer import render, visible_share
from arl2.shapes.world.scene import Scenes, sample_scenes, trajectory

MakeScene = Callable[..., Scenes]
CLIPS, FRAMES = 24, 81


@cache
def sampled() -> Scenes:
    scenes = sample_scenes(CLIPS, seed=100)
    return replace(scenes, hides_colour=torch.zeros_like(scenes.hides_colour))


def blurred_and_noisy(videos: Tensor) -> Tensor:
    weights = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (weights[:, None] * weights)[None, None]
    flat = functional.pad(videos.reshape(-1, 1, 64, 64), (1, 1, 1, 1), mode="replicate")
    noise = torch.randn(videos.shape, generator=torch.Generator().manual_seed(0))
    return functional.conv2d(flat, kernel).reshape(videos.shape) + 0.08 * noise


@cache
def readings(spoilt: bool) -> list[Reading]:
    videos = render(sampled(), FRAMES)
    return read_all(blurred_and_noisy(videos) if spoilt else videos)


@pytest.mark.parametrize("spoilt", [False, True], ids=["true", "noisy"])
def test_every_attribute_of_a_render_is_seen(spoilt: bool) -> None:
    scores = score_readings(readings(spoilt), requests_of(sampled()))
    for attribute in ATTRIBUTES:
        assert scores[attribute].of == CLIPS
        assert scores[attribute].hits >= (CLIPS - 1 if spoilt else CLIPS), attribute


@pytest.mark.parametrize("spoilt", [False, True], ids=["true", "noisy"])
def test_places_and_visible_shares_are_measured(spoilt: bool) -> None:
    places, shares = trajectory(sampled(), FRAMES), visible_share(sampled(), FRAMES)
    for reading, place, share in zip(readings(spoilt), places, shares, strict=True):
        whole = share > 0.9
        off = (reading.place[whole] - place[whole]).norm(dim=1)
        assert off.mean() < (0.5 if spoilt else 0.15)
        # Beside a wall a few pixels of the outline are left out.
        assert off.max() < 1.5
        assert spoilt or reading.place[share == 0].isnan().all()
        assert (reading.visible - share).abs().mean() < 0.08


def test_walls_are_where_they_are() -> None:
    scenes = sampled()
    first, last = scenes.wall_centre - scenes.wall_width / 2, scenes.wall_centre + scenes.wall_width / 2
    for index, reading in enumerate(readings(False)):
        if not scenes.wall[index]:
            assert reading.wall_span.isnan().all()
            continue
        assert reading.wall_is_level == bool(scenes.wall_is_level[index])
        assert (reading.wall_span - torch.stack((first[index], last[index]))).abs().max() < 1
        assert not reading.in_front.any()


def test_true_renders_are_read_with_confidence() -> None:
    sure = [reading.confidence for reading in readings(False)]
    assert sum(sure) / len(sure) > 0.95


@pytest.mark.parametrize("size", [48, 128])
def test_other_picture_sizes_are_read(size: int) -> None:
    scenes = sampled().select(slice(3))
    for reading, asked in zip(read_all(render(scenes, 41, size=size)), requests_of(scenes), strict=True):
        assert (reading.colour, reading.motion, reading.background) == (
            asked.colour,
            asked.motion,
            asked.background,
        )


@pytest.mark.parametrize("attribute", ["colour", "shape", "motion", "background"])
def test_a_wrong_attribute_is_seen_as_that_wrong_attribute(attribute: str, one_scene: MakeScene) -> None:
    asked = requests_of(one_scene(place_x=0.3))[0]
    wrong = one_scene(**{"place_x": 0.3, attribute: 1})
    reading = read(render(wrong, 30)[0])
    seen = {name: getattr(reading, name) for name in ATTRIBUTES}
    expected = {name: getattr(requests_of(wrong)[0], name) for name in ATTRIBUTES}
    assert seen == expected
    assert seen[attribute] != getattr(asked, attribute)


def drawn(cover: Tensor, colour: Tensor | None = None, background: int = 0) -> Tensor:
    """A clip [3, frames, 64, 64] from the cover [frames, 64, 64] of a red object."""
    ground = background_table()[background][:, None, None, None]
    paint = (colour_table()[0] if colour is None else colour)[:, None, None, None]
    return torch.lerp(ground.expand(3, *cover.shape), paint.expand(3, *cover.shape), cover)


def moving_grid(frames: int = 24) -> tuple[Tensor, Tensor]:
    """Coordinates relative to something that moves right at 1 pixel a video frame, [frames, 64, 64] each."""
    middles = torch.arange(64) + 0.5
    x = (middles - 20 - torch.arange(frames)[:, None])[:, None, :].expand(-1, 64, -1)
    y = (middles - 32)[None, :, None].expand(frames, -1, 64)
    return x, y


def soft(distance: Tensor) -> Tensor:
    return (0.5 - distance).clamp(0, 1)


def squircle(x: Tensor, y: Tensor) -> Tensor:
    return (x.abs() ** 3.5 + y.abs() ** 3.5) ** (1 / 3.5) - 9.3


def diamond(x: Tensor, y: Tensor) -> Tensor:
    return (x.abs() + y.abs()) / 2**0.5 - 8.8


def ellipse(x: Tensor, y: Tensor) -> Tensor:
    return ((x / 13).square() + (y / 7).square()).sqrt() * 9 - 9


def ring(x: Tensor, y: Tensor) -> Tensor:
    distance = (x.square() + y.square()).sqrt()
    return torch.maximum(distance - 10, 5.5 - distance)


def bar(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs() - 12, y.abs() - 6)


def upside_down(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(-y - 3, 0.5 * (3**0.5 * x.abs() + y + 3)) - 5.8


@pytest.mark.parametrize("shape", [squircle, diamond, ellipse, ring, bar, upside_down])
def test_other_shapes_are_none_of_the_known(shape: Callable[[Tensor, Tensor], Tensor]) -> None:
    reading = read(drawn(soft(shape(*moving_grid()))))
    assert reading.shape is None
    assert reading.confidence == 0
    assert reading.colour == "red"
    assert reading.motion == "right"


def test_a_hand_drawn_circle_is_a_circle() -> None:
    x, y = moving_grid()
    assert read(drawn(soft((x.square() + y.square()).sqrt() - 10))).shape == "circle"


def test_other_colours_are_none_of_the_known() -> None:
    x, y = moving_grid()
    cover = soft((x.square() + y.square()).sqrt() - 10)
    assert read(drawn(cover, torch.tensor([0.9, 0.1, 0.4]))).colour is None
    assert read(drawn(cover, torch.tensor([0.9, 0.9, 0.9]))).colour is None


def test_an_object_of_two_colours_has_none() -> None:
    x, y = moving_grid()
    cover = soft((x.square() + y.square()).sqrt() - 10)
    video = torch.where(y[None] < 0, drawn(cover), drawn(cover, colour_table()[2]))
    assert read(video).colour is None


def test_two_objects_are_not_one() -> None:
    x, y = moving_grid()
    cover = soft(torch.minimum((x.square() + (y - 16).square()).sqrt(), (x.square() + (y + 16).square()).sqrt()) - 10)
    assert read(drawn(cover)).shape is None


def test_an_object_that_changes_shape_or_colour_half_way_has_none(one_scene: MakeScene) -> None:
    first = render(one_scene(place_x=0.3), 15)[0]
    for change, attribute in (({"shape": 1}, "shape"), ({"colour": 3}, "colour")):
        second = render(one_scene(place_x=0.3, **change), 15, start=15)[0]
        assert getattr(read(torch.cat((first, second), dim=1)), attribute) is None


def test_an_object_that_turns_back_does_not_move_right(one_scene: MakeScene) -> None:
    there = render(one_scene(place_x=0.3), 15)[0]
    assert read(torch.cat((there, there.flip(1)), dim=1)).motion is None


def test_an_object_that_stands_has_no_motion(one_scene: MakeScene) -> None:
    assert read(render(one_scene(place_x=0.4, speed=0.0), 20)[0]).motion is None


def test_one_that_leaves_the_picture_aslant_does_not_bounce() -> None:
    x, y = moving_grid(60)
    moved = (torch.arange(60) * 0.7 - 30)[:, None, None]
    cover = soft((x.square() + (y - moved).square()).sqrt() - 10)
    assert read(drawn(cover)).motion is None


def test_an_object_in_front_of_the_wall_is_not_behind_it(one_scene: MakeScene) -> None:
    bare, walled = (render(one_scene(wall=wall), 81)[0] for wall in (False, True))
    red = (bare - colour_table()[0][:, None, None, None]).norm(dim=0) < 0.3
    reading = read(torch.where(red, bare, walled))
    assert reading.in_front.any()
    assert not reading.wall
    assert read(walled).wall


def test_an_empty_picture_shows_nothing() -> None:
    reading = read(background_table()[1][:, None, None, None].expand(3, 40, 64, 64))
    assert (reading.colour, reading.shape, reading.motion) == (None, None, None)
    assert reading.background == "white"
    assert not reading.wall
    assert reading.place.isnan().all()
    assert reading.occlusions == ()


def test_a_picture_that_is_all_wall_shows_nothing_else() -> None:
    reading = read(wall_pixel()[:, None, None, None].expand(3, 40, 64, 64))
    assert (reading.colour, reading.shape, reading.motion, reading.background) == (None, None, None, None)
    assert reading.wall


def test_noise_shows_no_object() -> None:
    video = torch.randn(3, 20, 64, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    reading = read(video)
    assert reading.shape is None
    assert reading.confidence == 0


def test_values_that_are_not_finite_do_no_harm(one_scene: MakeScene) -> None:
    video = render(one_scene(place_x=0.3), 20)[0]
    video[:, 3] = torch.nan
    assert read(video).colour == "red"


@pytest.mark.parametrize("motion", MOTIONS[:4])
@pytest.mark.parametrize("colour", [0, 5])
def test_an_occlusion_is_seen_with_what_came_out(motion: str, colour: int, one_scene: MakeScene) -> None:
    scene = one_scene(wall=True, wall_width=30.0, motion=MOTIONS.index(motion), place_x=0.3, place_y=0.3)
    other = replace(scene, colour=torch.tensor([colour]), shape=torch.tensor([2 if colour else 0]))
    hidden = (visible_share(scene, 110)[0, :] == 0).nonzero().flatten()
    way = trajectory(scene, 110)[0, :, 0 if motion in ("right", "left") else 1]
    behind = next(frame for frame in hidden.tolist() if 15 < way[frame] < 49)
    video = torch.cat((render(scene, behind + 3)[0], render(other, 110, start=behind + 3)[0]), dim=1)
    occlusion = next(each for each in read(video).occlusions if each.behind_wall)
    assert abs(occlusion.first - behind) <= 7
    assert occlusion.returned
    assert (occlusion.colour_before, occlusion.colour_after) == ("red", tuple(COLOURS)[colour])
    assert (occlusion.shape_before, occlusion.shape_after) == ("circle", SHAPES[2 if colour else 0])


def test_leaving_the_picture_is_not_going_behind_a_wall(one_scene: MakeScene) -> None:
    occlusions = read(render(one_scene(place_x=0.8), 60)[0]).occlusions
    assert [each.behind_wall for each in occlusions] == [False]
    assert occlusions[0].returned


def test_long_occlusions_are_measured() -> None:
    scenes = sample_occlusions(4, seed=2, hidden=60)
    for reading, colour in zip(read_all(render(scenes, 130)), scenes.colour.tolist(), strict=True):
        (occlusion,) = (each for each in reading.occlusions if each.behind_wall)
        assert 60 <= occlusion.frames <= 74
        assert occlusion.first <= 24
        assert occlusion.colour_before == occlusion.colour_after == tuple(COLOURS)[colour]


def test_a_clip_can_be_too_short_or_not_square() -> None:
    with pytest.raises(Arl2Error, match="at least 5 video frames"):
        read(torch.zeros(3, 4, 64, 64))
    with pytest.raises(Arl2Error, match="square"):
        read(torch.zeros(3, 9, 64, 32))
