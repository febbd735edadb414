"""The suite ``shapes``: does a video show what its prompt asks for, and does its object obey the world's physics?"""

import math
from collections.abc import Sequence

import torch

from arl2.errors import Arl2Error, ConfigError
from arl2.evaluation.suites.clips import ClipSuite
from arl2.evaluation.suites.suite import Item, Measured, Metric, Subject, SuiteOptions
from arl2.shapes.evaluation.score import READ_FRAMES, colour_at_the_end
from arl2.shapes.evaluation.suites.counting import objects_at_once
from arl2.shapes.evaluation.suites.physics import position_error
from arl2.shapes.evaluator.flicker import flicker, stutter
from arl2.shapes.evaluator.oracle import MIN_FRAMES, Reading, read
from arl2.shapes.evaluator.scoring import score_readings
from arl2.shapes.prompts.captions import captions_of
from arl2.shapes.prompts.parser import complete, parse_prompt, scenes_of_prompts
from arl2.shapes.prompts.request import ATTRIBUTES, SceneRequest
from arl2.shapes.world.renderer import render
from arl2.shapes.world.scene import sample_scenes
from arl2.video.pixels import Frames, from_bytes, to_bytes

_FPS = 16
_OF_THE_END = ("last_second_colour", "last_motion", "last_all")
_SCENES, _AT_ONCE = 16384, 256


def captions(count: int, *, seed: int) -> list[str]:
    """Captions of the first random scenes of a seed whose captions differ; all of them again, should there be no more.

    Up to the first repetition they are the prompts of ``arl2 shapes score``.
    """
    found: dict[str, None] = {}
    # There are some 700 captions; of this many scenes nearly all show up.
    for first in range(0, max(_SCENES, count), _AT_ONCE):
        found |= dict.fromkeys(captions_of(sample_scenes(_AT_ONCE, seed=seed, first=first)))
        if len(found) >= count:
            break
    distinct = list(found)
    return [distinct[number % len(distinct)] for number in range(count)]


class ShapesSuite(ClipSuite):
    """Prompt accuracy by attribute, position error, stutter and counts, read by the ground-truth evaluator."""

    name = "shapes"
    revision = 1
    about = "prompt accuracy by attribute, position error, stutter and counts, in the shapes world"
    primary = "all"
    knows_truth = True
    metrics = (
        Metric("all", "every attribute as requested", "high", is_share=True),
        *(Metric(name, f"{name} as requested", "high", is_share=True) for name in ATTRIBUTES),
        Metric("last_second_colour", "colour as requested at the end of a longer video", "high", is_share=True),
        Metric("last_motion", f"motion as requested in its last {READ_FRAMES} video frames", "high", is_share=True),
        Metric("last_all", "every attribute as requested in these", "high", is_share=True),
        Metric("position_error", "world pixels from the nearest track that the physics allow", "low"),
        Metric("stutter", "mean change of the object's step over the mean step", "low"),
        Metric("flicker", "change that the next frame undoes, in pixel values from -1 to 1", "low"),
        Metric("objects", "objects shown at once", "neither"),
        Metric("one_object", "never more than one object", "high", is_share=True),
    )

    def measure_clip(self, frames: Frames, item: Item, *, fps: float) -> tuple[dict[str, float], dict[str, str]]:
        request = complete(parse_prompt(item.prompt))
        video = from_bytes(frames)
        count, height, width = video.shape[1:]
        if height != width:
            raise Arl2Error(f"its frames are {width} x {height}, and those of the shapes world are square")
        if count < MIN_FRAMES:
            raise Arl2Error(f"{count} video frame{'s' if count > 1 else ''}; the evaluator takes {MIN_FRAMES}")
        start = video[:, :READ_FRAMES]
        reading = read(start)
        values, excluded = _as_requested(reading, request)
        values["flicker"] = flicker(start[None]).item()
        shaking = stutter(reading)
        if math.isnan(shaking):
            excluded["stutter"] = "the object is never well visible, or never moves"
        else:
            values["stutter"] = shaking
        off = position_error(reading, str(request.motion))
        if off is None:
            excluded["position_error"] = "the object is hardly ever well visible"
        else:
            values["position_error"] = off
        objects = objects_at_once(start, reading)
        if objects is None:
            excluded |= dict.fromkeys(("objects", "one_object"), "no object shows")
        else:
            values |= {"objects": objects, "one_object": float(objects <= 1)}
        if count <= READ_FRAMES:
            excluded |= dict.fromkeys(_OF_THE_END, f"{READ_FRAMES} video frames or fewer")
            return values, excluded
        ending = read(video[:, -READ_FRAMES:])
        if request.colour is not None:
            values["last_second_colour"] = colour_at_the_end([ending], [request], fps=round(fps)).value
        # An object that stands still keeps its colour.
        at_end, hidden = _as_requested(ending, request)
        values |= {f"last_{name}": at_end[name] for name in ("motion", "all") if name in at_end}
        excluded |= {f"last_{name}": hidden[name] for name in ("motion", "all") if name in hidden}
        return values, excluded

    def check(self, options: SuiteOptions, subjects: Sequence[Subject]) -> None:
        super().check(options, subjects)
        if options.num_frames is not None and options.num_frames < MIN_FRAMES:
            raise ConfigError(f"Got {options.num_frames} video frames; the evaluator takes {MIN_FRAMES} or more.")

    def refusal(self, prompt: str) -> str | None:
        try:
            complete(parse_prompt(prompt))
        except Arl2Error as error:
            return str(error)
        return None

    @torch.no_grad()
    def measure_truth(self, items: Sequence[Item], options: SuiteOptions) -> list[Measured]:
        count = options.num_frames or self.num_frames
        found = []
        for item in items:
            scene = scenes_of_prompts([item.prompt], seed=item.seed)
            found.append(self.measure_video(to_bytes(render(scene, count)[0]), item, fps=float(_FPS)))
        return found


def _as_requested(reading: Reading, request: SceneRequest) -> tuple[dict[str, float], dict[str, str]]:
    values, excluded = {}, {}
    for name, share in score_readings([reading], [request]).items():
        if share.of:
            values[name] = share.value
        elif name == "all" or getattr(request, name) is not None:
            excluded[name] = "the object could have been occluded throughout"
    return values, excluded
