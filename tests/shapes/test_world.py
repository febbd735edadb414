"""Scenes are the same however many are drawn; things are where simple arithmetic says."""

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.errors import Arl2Error
from arl2.shapes.world.palette import MOTIONS
from arl2.shapes.world.scene import Scenes, sample_scenes, trajectory, wall_path

MakeScene = Callable[..., Scenes]


def same(one: Scenes, other: Scenes) -> bool:
    return all(torch.equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(Scenes))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**40), count=st.integers(1, 20), more=st.integers(0, 20), data=st.data())
def test_scene_does_not_depend_on_how_many_are_drawn(seed: int, count: int, more: int, data: st.DataObject) -> None:
    many = sample_scenes(count + more, seed=seed)
    assert same(many.select(slice(count)), sample_scenes(count, seed=seed))
    first = data.draw(st.integers(0, count - 1))
    assert same(many.select([first]), sample_scenes(1, seed=seed, first=first))


def test_the_global_generators_are_left_alone() -> None:
    before = torch.random.get_rng_state()
    sample_scenes(10, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_everything_is_drawn_about_as_often_as_promised() -> None:
    scenes = sample_scenes(4000, seed=0)
    for name, choices in (("colour", 6), ("shape", 3), ("background", 4), ("motion", 5)):
        share = torch.bincount(getattr(scenes, name), minlength=choices) / len(scenes)
        assert share.sub(1 / choices).abs().max() < 0.03
    assert abs(scenes.wall.float().mean() - 0.4) < 0.03
    assert abs(scenes.hides_colour.float().mean() - 0.15) < 0.02
    assert scenes.radius.min() >= 9
    assert scenes.radius.max() <= 11


def test_draws_of_one_scene_are_unrelated() -> None:
    scenes = sample_scenes(4000, seed=1)
    columns = torch.stack([getattr(scenes, field.name).double() for field in fields(Scenes)])
    related = torch.corrcoef(columns[:-1])
    related[fields_index("wall_width"), fields_index("radius")] = 0
    related[fields_index("radius"), fields_index("wall_width")] = 0
    assert (related - torch.eye(len(related))).abs().max() < 0.06


def fields_index(name: str) -> int:
    return [field.name for field in fields(Scenes)].index(name)


@pytest.mark.parametrize(
    ("motion", "expected"), [("right", (1, 0)), ("left", (-1, 0)), ("up", (0, -1)), ("down", (0, 1))]
)
def test_straight_motions_move_by_their_speed(one_scene: MakeScene, motion: str, expected: tuple[int, int]) -> None:
    path = trajectory(one_scene(motion=MOTIONS.index(motion), place_x=0.5, place_y=0.5, speed=1.5), 10)[0]
    assert torch.allclose(path.diff(dim=0), 1.5 * torch.tensor(expected).float(), atol=1e-5)


def test_an_object_that_leaves_comes_back_at_the_other_side_after_one_lap(one_scene: MakeScene) -> None:
    # One lap is the picture, the object, and a gap of one pixel at both ends: 64 + 20 + 2.
    path = trajectory(one_scene(), 87)[0]
    assert path[0].tolist() == [-11, 32]
    assert path[85, 0] == 74
    assert torch.equal(path[86], path[0])


def test_a_bouncing_object_turns_at_the_edges_and_never_leaves(one_scene: MakeScene) -> None:
    path = trajectory(one_scene(motion=4, speed=2.0), 400)[0]
    assert path.amin() >= 11 - 1e-4
    assert path.amax() <= 53 + 1e-4
    steps = path.diff(dim=0)
    # The usual step is 0.8 and 0.65 of the speed; only turning shortens it.
    assert torch.allclose(steps.abs().median(dim=0).values, torch.tensor([1.6, 1.3]), atol=1e-4)
    assert (steps[:, 0] > 0).any()
    assert (steps[:, 0] < 0).any()


def test_walls_stand_or_move_and_return_at_the_other_side(one_scene: MakeScene) -> None:
    assert wall_path(one_scene(wall=True), 50).unique().tolist() == [32]
    moving = wall_path(one_scene(wall=True, wall_speed=2.0), 91)[0]
    # From 32 to 77, where it has just left, and in again at -13: one lap is 64 + 26.
    assert moving[22] == 76
    assert moving[23] == -12
    assert moving[45] == 32


def test_long_after_the_start_positions_are_still_exact(one_scene: MakeScene) -> None:
    scene = one_scene(speed=1.3)
    late = trajectory(scene, 1, start=1_000_000)[0, 0, 0]
    # As float32 the speed is 1.2999999523..., so reckon with what the scene holds.
    expected = (1_000_000 * scene.speed.double().item()) % 86 - 11
    assert abs(late - expected) < 1e-4


@settings(deadline=None, max_examples=20)
@given(start=st.integers(0, 500), frames=st.integers(1, 9))
def test_a_later_start_gives_the_later_positions(start: int, frames: int) -> None:
    """To the bit on any processor: every operation works on single numbers and rounds once."""
    scenes = sample_scenes(7, seed=5, wall_speed_range=(-1.0, 1.0))
    assert torch.equal(trajectory(scenes, frames, start=start), trajectory(scenes, start + frames)[:, start:])
    assert torch.equal(wall_path(scenes, frames, start=start), wall_path(scenes, start + frames)[:, start:])


def test_options_change_what_is_drawn() -> None:
    fast = sample_scenes(50, seed=0, speed_range=(3.0, 6.0), wall_probability=1.0, wall_spare_range=(20.0, 30.0))
    assert fast.speed.min() >= 3
    assert fast.wall.all()
    assert (fast.wall_width - 2 * fast.radius).min() >= 20
    usual = sample_scenes(50, seed=0)
    assert same(replace(fast, speed=usual.speed, wall=usual.wall, wall_width=usual.wall_width), usual)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": -1}, "0 or more"),
        ({"seed": -1}, "0 or more"),
        ({"speed_range": (2.0, 1.0)}, "smaller number first"),
        ({"radius_range": (-1.0, 1.0)}, "must not be negative"),
        ({"wall_probability": 1.5}, "between 0 and 1"),
    ],
)
def test_impossible_options_are_refused(options: dict, said: str) -> None:
    with pytest.raises(Arl2Error, match=said):
        sample_scenes(**({"count": 1, "seed": 0} | options))


def test_times_before_the_start_are_refused(one_scene: MakeScene) -> None:
    with pytest.raises(Arl2Error, match="0 or later"):
        trajectory(one_scene(), 3, start=-1)
