"""Scores count what was asked and could be seen, with honest intervals; flicker and stutter see unsteadiness."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arl2.errors import Arl2Error
from arl2.shapes.evaluator.flicker import flicker, stutter
from arl2.shapes.evaluator.occlusion import Occlusion
from arl2.shapes.evaluator.oracle import read, read_all
from arl2.shapes.evaluator.scoring import (
    MOST_SEEN,
    PATIENCE_WITH_WALL,
    PATIENCE_WITHOUT_WALL,
    Share,
    score,
    score_occlusions,
)
from arl2.shapes.prompts.request import SceneRequest, requests_of
from arl2.shapes.world.curtain import sample_occlusions
from arl2.shapes.world.renderer import render, visible_share
from arl2.shapes.world.scene import Scenes, sample_scenes

MakeScene = Callable[..., Scenes]


def test_wilson_intervals_are_those_of_the_tables() -> None:
    # Wilson's interval for 8 of 10, as computed by hand: 0.490 to 0.943.
    low, high = Share(8, 10).interval
    assert low == pytest.approx(0.4902, abs=1e-3)
    assert high == pytest.approx(0.9433, abs=1e-3)
    assert Share(0, 0).interval == (0.0, 1.0)
    assert math.isnan(Share(0, 0).value)
    assert str(Share(1, 2)) == "50.0% (9.5% to 90.5%, 1 of 2)"
    for share in (Share(8, 10), Share(0, 0)):
        plain = json.loads(json.dumps(share.to_mapping(), allow_nan=False))
        assert (plain["low"], plain["high"]) == share.interval
        assert plain["share"] == (share.value if share.of else None)
        assert Share.from_mapping(plain) == share


@given(of=st.integers(1, 1000), data=st.data())
def test_intervals_hold_the_share_and_mirror(of: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, of))
    low, high = Share(hits, of).interval
    assert 0 <= low <= hits / of + 1e-9
    assert hits / of - 1e-9 <= high <= 1
    mirrored = Share(of - hits, of).interval
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_scores_count_only_what_was_asked(one_scene: MakeScene) -> None:
    videos = render(one_scene(place_x=0.3), 20).expand(3, -1, -1, -1, -1)
    requests = [
        SceneRequest(colour="red", motion="right"),
        SceneRequest(colour="blue", shape="circle"),
        SceneRequest(wall=False),
    ]
    shares = score(videos, requests)
    assert (shares["colour"], shares["shape"], shares["motion"]) == (Share(1, 2), Share(1, 1), Share(1, 1))
    assert (shares["background"], shares["wall"]) == (Share(0, 0), Share(1, 1))
    assert shares["all"] == Share(2, 3)


def test_an_empty_long_clip_is_wrong_and_a_short_one_could_be_hiding_it(one_scene: MakeScene) -> None:
    asked = requests_of(one_scene(wall=True))
    # With the object gone, only the wall remains.
    bare = render(one_scene(wall=True), 1, start=43).expand(-1, -1, 100, -1, -1)
    long, short = score(bare, asked), score(bare[:, :, :40], asked)
    for attribute in ("colour", "shape", "motion"):
        assert long[attribute] == Share(0, 1)
        assert short[attribute] == Share(0, 0)
    for shares in (long, short):
        assert shares["background"] == shares["wall"] == Share(1, 1)
    assert long["all"] == Share(0, 1)


def test_a_wall_does_not_excuse_an_object_that_is_seen(one_scene: MakeScene) -> None:
    still = render(one_scene(wall=True, wall_centre=50.0, place_x=0.3, speed=0.0), 40)
    assert score(still, requests_of(one_scene(wall=True)))["motion"] == Share(0, 1)


def test_as_many_requests_as_clips() -> None:
    with pytest.raises(Arl2Error, match="one request for each clip"):
        score(torch.zeros(2, 3, 8, 64, 64), [SceneRequest(wall=True)])


def test_true_occlusions_keep_everything_and_swapped_ones_do_not() -> None:
    scenes = sample_occlusions(6, seed=3, hidden=20)
    true = render(scenes, 80)
    assert score_occlusions(read_all(true))["object"] == Share(6, 6)
    others = replace(scenes, colour=(scenes.colour + 1) % 6)
    swapped = torch.cat((true[:, :, :35], render(others, 45, start=35)), dim=2)
    shares = score_occlusions(read_all(swapped))
    assert (shares["colour"], shares["shape"], shares["object"]) == (Share(0, 6), Share(6, 6), Share(0, 6))
    reshaped = replace(scenes, shape=(scenes.shape + 1) % 3)
    changed = torch.cat((true[:, :, :35], render(reshaped, 45, start=35)), dim=2)
    shares = score_occlusions(read_all(changed))
    assert (shares["colour"], shares["shape"]) == (Share(6, 6), Share(0, 6))
    assert score_occlusions(read_all(true), at_least=60)["object"] == Share(0, 0)


def with_occlusion(one_scene: MakeScene, **changed: object) -> dict[str, Share]:
    reading = read(render(one_scene(place_x=0.3), 8)[0])
    occlusion = Occlusion(
        first=9,
        frames=10,
        behind_wall=True,
        returned=True,
        shown_after=True,
        colour_before="red",
        colour_after="red",
        shape_before="circle",
        shape_after="circle",
    )
    return score_occlusions([replace(reading, occlusions=(replace(occlusion, **changed),))])


def test_occlusions_count_where_the_clip_could_show_what_came_out(one_scene: MakeScene) -> None:
    assert with_occlusion(one_scene)["object"] == Share(1, 1)
    assert with_occlusion(one_scene, colour_after=None)["colour"] == Share(0, 1)
    assert with_occlusion(one_scene, colour_after=None, shown_after=False)["colour"] == Share(0, 0)
    assert with_occlusion(one_scene, behind_wall=False)["colour"] == Share(0, 0)
    assert with_occlusion(one_scene, colour_before=None)["colour"] == Share(0, 0)
    gone = {"returned": False, "shown_after": False, "colour_after": None, "shape_after": None}
    assert with_occlusion(one_scene, **gone)["object"] == Share(0, 0)
    assert with_occlusion(one_scene, **gone, frames=80)["object"] == Share(0, 1)


def test_true_renders_do_not_flicker_and_noise_does() -> None:
    videos = render(sample_scenes(6, seed=4), 30)
    noise = 0.1 * torch.randn(videos.shape, generator=torch.Generator().manual_seed(0))
    assert flicker(videos).max() < 0.002
    assert flicker(videos + noise).min() > 0.03


def test_flicker_counts_what_is_undone() -> None:
    # Up by 0.5 and back by 0.2: of two changes in a row, 0.2 is undone.
    video = torch.tensor([0.0, 0.5, 0.3]).expand(1, 3, 4, 4, 3).movedim(-1, 2)
    assert flicker(video).item() == pytest.approx(0.2)
    assert flicker(torch.tensor([0.0, 0.5, 0.8]).expand(1, 3, 4, 4, 3).movedim(-1, 2)) == 0
    with pytest.raises(Arl2Error, match="at least 3"):
        flicker(video[:, :, :2])


def test_stutter_sees_groups_of_equal_video_frames(one_scene: MakeScene) -> None:
    video = render(one_scene(place_x=0.3), 40)[0]
    in_fours = video[:, torch.arange(40) // 4 * 4]
    assert stutter(read(video)) < 0.1
    assert stutter(read(in_fours)) > 1.5
    assert math.isnan(stutter(read(torch.zeros(3, 9, 64, 64))))


def test_usual_scenes_show_most_of_the_object_within_the_patience_of_the_score() -> None:
    scenes = sample_scenes(300, seed=7)
    for wall, patience in ((False, PATIENCE_WITHOUT_WALL), (True, PATIENCE_WITH_WALL)):
        shown = visible_share(scenes.select(scenes.wall == wall), patience).amax(1)
        assert shown.min() > MOST_SEEN
