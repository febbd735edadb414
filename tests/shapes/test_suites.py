"""The suites of the shapes world: true renders are right, and what is changed in them is wrong, and nothing else."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from arl2.evaluation.suites.suite import Item, Measured, Subject, SuiteOptions
from arl2.geometry import FrameRange
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.blocks import VideoBlock
from arl2.shapes.evaluation.occlusion import moving_occlusions
from arl2.shapes.evaluation.suites.memory import KNOWN_FRAMES, MemorySuite
from arl2.shapes.evaluation.suites.physics import position_error
from arl2.shapes.evaluation.suites.prompted import ShapesSuite, captions
from arl2.shapes.evaluator.oracle import read
from arl2.shapes.prompts.captions import captions_of
from arl2.shapes.prompts.parser import scenes_of_prompts
from arl2.shapes.world.renderer import render
from arl2.shapes.world.scene import Scenes, sample_scenes
from arl2.video.pixels import to_bytes

BOUNCING = "a red circle bounces on navy"


def item(prompt: str, *, seed: int = 0, length: int = 0, number: int = 0) -> Item:
    return Item(prompt, prompt, seed, 0, number, length)


def measured(prompt: str, *, told: str | None = None, change=None, frames: int = 81) -> Measured:
    """A true render of one prompt, held against another."""
    video = render(scenes_of_prompts([prompt], seed=3), frames)[0]
    if change is not None:
        video = change(video)
    return ShapesSuite().measure_video(to_bytes(video), item(told or prompt), fps=16)


def test_true_renders_are_right_in_everything() -> None:
    prompts = captions(6, seed=11)
    found = ShapesSuite().measure_truth([item(one, seed=n) for n, one in enumerate(prompts)], SuiteOptions())
    for one in found:
        assert one.values["all"] == 1
        assert one.values["one_object"] == one.values["objects"] == 1
        assert one.values["position_error"] < 0.3
        assert one.values["flicker"] < 0.01
        assert one.strip[:2] == b"\xff\xd8"  # a JPEG
    assert captions(3, seed=11) == prompts[:3] == captions_of(sample_scenes(3, seed=11))


def test_another_prompt_is_wrong_in_what_differs() -> None:
    values = measured(BOUNCING, told="a green circle bounces on navy").values
    assert (values["colour"], values["shape"], values["motion"], values["all"]) == (0, 1, 1, 0)
    values = measured(BOUNCING, told="a red circle moves up on navy behind a wall").values
    assert (values["motion"], values["wall"], values["background"]) == (0, 0, 1)
    assert values["position_error"] > 3  # no track that moves up bounces


def test_a_second_object_is_counted_and_a_jump_is_off_the_track() -> None:
    def second(video):
        twin = render(scenes_of_prompts(["a green square bounces on navy"], seed=8), video.shape[1])[0]
        ground = render(scenes_of_prompts([BOUNCING], seed=3), 1)[0, :, :1, :1, :1]
        return torch.where((twin - ground).abs().amax(0) > 0.2, twin, video)

    values = measured(BOUNCING, change=second).values
    assert values["objects"] > 1.5
    assert values["one_object"] == 0
    jumping = measured(BOUNCING, change=lambda video: video.roll(15, dims=1)).values
    steady = measured(BOUNCING).values
    assert jumping["position_error"] > 2 > 10 * steady["position_error"]
    assert jumping["stutter"] > steady["stutter"]


@pytest.mark.parametrize("motion", ["right", "left", "up", "down", "bounce"])
def test_every_motion_is_on_its_track_and_off_that_of_others(motion: str) -> None:
    said = "bounces" if motion == "bounce" else f"moves {motion}"
    reading = read(render(scenes_of_prompts([f"a red square {said} on black"], seed=5), 81)[0])
    errors = {one: position_error(reading, one) for one in ("right", "left", "up", "down", "bounce")}
    assert errors[motion] < 0.3
    assert min(error for one, error in errors.items() if one != motion) > 5 * errors[motion] + 0.5


def test_an_object_that_stops_is_seen_at_the_end_of_a_long_video() -> None:
    prompt = "a red circle moves right on navy"
    moving = measured(prompt, frames=170).values
    assert (moving["last_second_colour"], moving["last_motion"], moving["last_all"]) == (1, 1, 1)
    stopped = measured(prompt, change=lambda video: video[:, [*range(85), *[80] * 85]], frames=170)
    assert (stopped.values["all"], stopped.values["last_second_colour"]) == (1, 1)
    assert (stopped.values["last_motion"], stopped.values["last_all"]) == (0, 0)
    short = measured(prompt)
    assert {short.excluded[name] for name in ("last_motion", "last_all")} == {"81 video frames or fewer"}


def test_videos_that_the_evaluator_cannot_read_are_named() -> None:
    with pytest.raises(Exception, match="3 video frames; the evaluator takes 5"):
        measured(BOUNCING, frames=3)
    with pytest.raises(Exception, match="64 x 60"):
        measured(BOUNCING, change=lambda video: video[:, :, :60])
    plain = measured(BOUNCING, change=lambda video: video[:, :1, :1, :1].expand(3, 81, 64, 64))
    assert plain.values["shape"] == 0
    assert plain.excluded["objects"] == "no object shows"


HOW = SuiteOptions(count=4, seed=3, hidden=(20,))


def memory_of(monkeypatch, continuation: Scenes | torch.Tensor) -> list[dict[str, float]]:
    """What is measured of a model that continues every clip with these scenes."""
    suite = MemorySuite()
    items = suite.items(HOW)

    def stream(self, prompts, *, options, known, **others) -> Iterator[VideoBlock]:
        assert 1 + 4 * (known.shape[2] - 1) == KNOWN_FRAMES
        assert not any(colour in " ".join(prompts) for colour in ("red", "green", "blue", "yellow", "cyan"))
        video = continuation if isinstance(continuation, torch.Tensor) else render(continuation, options.num_frames)
        yield VideoBlock(0, FrameRange(0, 24), torch.zeros(4, 16, 24, 8, 8), 0, video, 0.0, 0.0, 0.0)

    monkeypatch.setattr(ARL2Pipeline, "stream", stream)
    pipe = ARL2Pipeline.from_pretrained("shapes")
    found = suite.measure_model(Subject("shapes", "model", "shapes"), items, HOW, lambda subject: pipe)
    assert all(one.strip for one in found if "" not in one.excluded)
    return [dict(one.values) for one in found]


def test_memory_finds_what_is_kept_and_what_is_not(monkeypatch) -> None:
    scenes = moving_occlusions(4, seed=3, hidden=20, known=KNOWN_FRAMES, num_frames=85)
    names = ("comes_back@20", "colour@20", "shape@20", "position@20", "object@20")

    def kept(continuation) -> list[float]:
        found = memory_of(monkeypatch, continuation)
        return [sum(one[name] for one in found) / 4 for name in names]

    assert kept(scenes) == [1, 1, 1, 1, 1]
    truth = MemorySuite().measure_truth(MemorySuite().items(HOW), HOW)
    assert [sum(one.values[name] for one in truth) / 4 for name in names] == [1, 1, 1, 1, 1]
    assert max(one.values["position_error@20"] for one in truth) < 0.5
    assert kept(replace(scenes, colour=(scenes.colour + 1) % 6)) == [1, 0, 1, 1, 0]  # another colour is no memory of it
    _, colour, shape, *_ = kept(replace(scenes, shape=(scenes.shape + 1) % 3))
    assert (colour, shape) == (1, 0)
    shifted = replace(scenes, place_x=(scenes.place_x + 0.3) % 1, place_y=(scenes.place_y + 0.3) % 1)
    assert kept(shifted)[3] == 0
    assert kept(replace(scenes, radius=torch.full_like(scenes.radius, 0.5))) == [0, 0, 0, 0, 0]
    whole = render(scenes, 85)
    whole[2, :, 60] = torch.nan
    found = memory_of(monkeypatch, whole)
    assert [bool(one) for one in found] == [True, True, False, True]
