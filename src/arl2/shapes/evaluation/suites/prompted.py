"""The suite ``shapes``: does a video show what its prompt asks for, and does its object obey the world's physics?"""

import math
from collections.abc import Sequence

import torch

from arl2.errors import Arl2Error
from arl2.evaluation.suites.clips import ClipSuite
from arl2.evaluation.suites.suite import Item, Measured, Metric, SuiteOptions
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


def captions(count: int, *, seed: int) -> list[str]:
    """Captions of the first random scenes of a seed: the prompts of ``arl2 shapes score``."""
    return captions_of(sample_scenes(count, seed=seed))


class ShapesSuite(ClipSuite):
    """Prompt accuracy by attribute, position error, stutter and counts, read by the ground-truth evaluator."""

    name = "shapes"
    about = "prompt accuracy by attribute, position error, stutter and counts, in the shapes world"
    primary = "all"
    knows_truth = True
    metrics = (
        Metric("all", "every attribute as requested", "high", is_share=True),
        *(Metric(name, f"{name} as requested", "high", is_share=True) for name in ATTRIBUTES),
        Metric("last_second_colour", "colour as requested at the end of a longer video", "high", is_share=True),
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
            raise Arl2Error(f"{count} video frames; the evaluator takes {MIN_FRAMES}")
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
        if count > READ_FRAMES and request.colour is not None:
            share = colour_at_the_end([read(video[:, -READ_FRAMES:])], [request], fps=round(fps))
            values["last_second_colour"] = share.value
        return values, excluded

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
