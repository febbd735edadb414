"""The suite ``memory``: what a model knows of an object that it has not seen for a while, over the length of the while.

A true clip is given up to the middle of an occlusion by a moving wall, with a caption that leaves the colour out. What
comes back is held against the true clip: the same colour, the same shape, where it should be.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import ConfigError
from arl2.evaluation.suites.clips import NOT_FINITE
from arl2.evaluation.suites.strips import filmstrip
from arl2.evaluation.suites.suite import Item, Load, Measured, Metric, Subject, Suite, SuiteOptions
from arl2.shapes.codec import GroupCodec
from arl2.shapes.evaluation.occlusion import KNOWN_BLOCKS, moving_occlusions
from arl2.shapes.evaluator.coloured import shown_colour
from arl2.shapes.evaluator.occlusion import CLEARLY_BETTER
from arl2.shapes.evaluator.oracle import ENOUGH_FRAMES
from arl2.shapes.evaluator.silhouettes import read_silhouettes
from arl2.shapes.evaluator.surroundings import read_surroundings
from arl2.shapes.prompts.captions import captions_of
from arl2.shapes.prompts.text import ShapesText
from arl2.shapes.world.palette import COLOURS, SHAPES
from arl2.shapes.world.renderer import render, visible_share
from arl2.shapes.world.scene import Scenes, trajectory
from arl2.video.pixels import from_bytes, to_bytes

HIDDEN = (24, 48, 96, 192)
# Video frames that are given, those after the wall has passed, and the shortest clip.
KNOWN_FRAMES, _AFTER, _SHORTEST = 33, 32, 81
# The object is back where this share of the true one is visible. It is read where most of it shows: where this share
# does, the first that enough video frames reach.
_BACK, _READ = 0.5, (0.9, 0.7, 0.5)
# World pixels from its true place within which an object is where it should be: less than its radius.
NEAR = 8.0
_FPS = 16.0
_ACROSS = "occluded video frames"

Video = Float[Tensor, "3 frames height width"]


class MemorySuite(Suite):
    """Colour, shape and position recovered after an occlusion, as curves over its length."""

    name = "memory"
    revision = 1
    about = "colour, shape and position recovered after an occlusion, as curves over its length"
    primary = "colour"
    knows_truth = True
    has_prompts = False
    has_lengths = True
    metrics = (
        Metric("comes_back", "an object is back, of any one colour", "high", _ACROSS, is_share=True),
        Metric("colour", "the colour is back, by area", "high", _ACROSS, is_share=True),
        Metric("shape", "the best-fitting shape is the right one, clearly", "high", _ACROSS, is_share=True),
        Metric("position", f"the object is within {NEAR:g} world pixels of its place", "high", _ACROSS, is_share=True),
        Metric("position_error", "world pixels from its place, median over video frames", "low", _ACROSS),
        Metric("object", "colour, shape and position", "high", _ACROSS, is_share=True),
    )

    def items(self, options: SuiteOptions) -> tuple[Item, ...]:
        return tuple(
            Item(f"clip {number}", prompt, options.noise_seed(number, replicate), replicate, number, hidden)
            for replicate in range(options.seeds)
            for hidden in options.hidden or HIDDEN
            for number, prompt in enumerate(captions_of(_scenes(options, hidden)))
        )

    @torch.no_grad()
    def measure_model(
        self, subject: Subject, items: Sequence[Item], options: SuiteOptions, load: Load
    ) -> list[Measured]:
        pipe = load(subject)
        known = pipe.codec.frames_of(0, KNOWN_BLOCKS * pipe.block_frames)
        if not isinstance(pipe.text, ShapesText) or not isinstance(pipe.codec, GroupCodec) or known != KNOWN_FRAMES:
            raise ConfigError(
                f"'{subject.label}' is no model of the shapes world with blocks of 12 video frames, which the suite "
                f"'{self.name}' is made for; leave it out."
            )
        scenes, truth = _clips(items, options)
        # After given frames the first block is a single sample.
        sampling = replace(
            subject.sampling,
            num_frames=truth.shape[2],
            seed=tuple(item.seed for item in items),
            first_block_candidates=None,
        )
        blocks = pipe.stream(
            [item.prompt for item in items],
            options=sampling,
            known=pipe.codec.encode(truth[:, :, :known].to(pipe.device)),
            rewind_blocks=0,
        )
        video = torch.cat([block.video.float().cpu() for block in blocks], dim=2)
        return [
            _judged(video[index].clamp(-1, 1), scenes.select([index]), item)
            if bool(torch.isfinite(video[index]).all())
            else Measured(excluded={"": NOT_FINITE})
            for index, item in enumerate(items)
        ]

    @torch.no_grad()
    def measure_truth(self, items: Sequence[Item], options: SuiteOptions) -> list[Measured]:
        scenes, truth = _clips(items, options)
        return [_judged(truth[index], scenes.select([index]), item) for index, item in enumerate(items)]


def _length(hidden: int) -> int:
    return max(_SHORTEST, KNOWN_FRAMES + hidden + _AFTER)


def _scenes(options: SuiteOptions, hidden: int) -> Scenes:
    return moving_occlusions(
        options.count, seed=options.seed, hidden=hidden, known=KNOWN_FRAMES, num_frames=_length(hidden)
    )


def _clips(items: Sequence[Item], options: SuiteOptions) -> tuple[Scenes, Float[Tensor, "clips 3 frames height width"]]:
    """Scenes of items of one length, and their true clips."""
    hidden = items[0].length
    scenes = _scenes(options, hidden).select([item.number for item in items])
    return scenes, render(scenes, _length(hidden))


def _judged(video: Video, scene: Scenes, item: Item) -> Measured:
    """A continuation against its scene, from the video frame on in which the true object is back."""
    frames = video.shape[1]
    visible = visible_share(scene, frames)[0]
    back = KNOWN_FRAMES + int((visible[KNOWN_FRAMES:] >= _BACK).long().argmax())
    strip = filmstrip(to_bytes(video[:, back - 8 :]))
    shown = Measured(strip=strip, frames=frames, height=video.shape[2], width=video.shape[3], fps=_FPS)
    if frames - back < 2 * ENOUGH_FRAMES:
        return replace(shown, excluded={"": "the true object is back too late to be read"})
    at = f"@{item.length}"
    shown_again = shown_colour(video[:, back:])
    colour = shown_again == tuple(COLOURS)[int(scene.colour)]
    shape, error = _shape_and_error(video[:, back:], trajectory(scene, frames)[0, back:], visible[back:])
    right = shape == SHAPES[int(scene.shape)]
    near = error is not None and error <= NEAR
    values = {
        f"comes_back{at}": float(shown_again is not None),
        f"colour{at}": float(colour),
        f"shape{at}": float(right),
        f"position{at}": float(near),
        f"object{at}": float(colour and right and near),
    }
    if error is None:
        return replace(shown, values=values, excluded={f"position_error{at}": "no object comes back"})
    return replace(shown, values={**values, f"position_error{at}": error})


def _shape_and_error(
    video: Video, place: Float[Tensor, "frames 2"], visible: Float[Tensor, " frames"]
) -> tuple[str | None, float | None]:
    """The best-fitting shape, None if the next one fits nearly as well; and the median distance from the true place."""
    images = from_bytes(to_bytes(video)).transpose(0, 1)
    seen = read_silhouettes(images, read_surroundings(images))
    most = seen.visible.amax(1)
    levels = [level for level in _READ if int((most >= level).sum()) >= ENOUGH_FRAMES]
    if not levels:
        return None, None
    shown = most >= levels[0]
    # In a video frame or two the fit of every shape may fail.
    misfit = seen.misfit[shown].nan_to_num(9.0).median(dim=0).values
    fit, next_fit = misfit.sort()[0][:2].tolist()
    best = int(misfit.argmin())
    compared = shown & (visible >= _READ[-1]) & seen.place[:, best].isfinite().all(1)
    if not bool(compared.any()):
        return (SHAPES[best] if fit <= CLEARLY_BETTER * next_fit else None), None
    error = (seen.place[compared, best] - place[compared]).norm(dim=1).median().item()
    return (SHAPES[best] if fit <= CLEARLY_BETTER * next_fit else None), error
