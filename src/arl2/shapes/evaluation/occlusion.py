"""The memory test: a true clip stops while its object is occluded; does the model bring the same colour back?"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from arl2.errors import Arl2Error
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.shapes.evaluation.score import BATCH, READ_FRAMES, blocks_video
from arl2.shapes.evaluator.coloured import shown_colour
from arl2.shapes.evaluator.occlusion import Occlusion
from arl2.shapes.evaluator.oracle import read_all
from arl2.shapes.evaluator.scoring import Share, score_occlusions
from arl2.shapes.prompts.captions import captions_of
from arl2.shapes.world.curtain import MIN_LEAD, sample_occlusions
from arl2.shapes.world.palette import COLOURS, WORLD_SIZE
from arl2.shapes.world.renderer import render
from arl2.shapes.world.scene import Scenes, sample_scenes, trajectory, wall_path
from arl2.streams.request import Window

Walls = Literal["standing", "moving"]

KNOWN_BLOCKS = 3
# Video frames that must show the whole object before and after the occlusion.
SEEN_BEFORE, SEEN_AFTER = 8, 5
# Video frames of the occlusion on each side of the cut, at least.
HIDDEN_EACH_SIDE = 2
# Video frames of a clip after a moving wall has passed.
_AFTER_MOVING_WALL = 32
# Batches of scenes with standing walls before giving up.
_BATCHES, _SCENES_A_BATCH = 40, 512


@dataclass(frozen=True)
class OcclusionScore:
    """Share of the clips whose object comes back as it was.

    Behind standing walls "colour", "shape" and "object" (both), as the ground-truth evaluator reads them. Behind moving
    ones "colour" alone, by area (see ``arl2.shapes.evaluator.coloured``): models generate a wall that fills the frame
    too badly for the evaluator.

    Attributes:
        model: of the generated continuations.
        truth: of the same clips rendered to the end: the ceiling.
        hidden: shortest occlusion in video frames.
        clips: scenes tried; the shares leave out those that cannot be judged (unreadable before, or back too late).
    """

    model: dict[str, Share]
    truth: dict[str, Share]
    hidden: int
    clips: int


@torch.no_grad()
def score_occluded(
    pipe: ARL2Pipeline,
    *,
    clips: int,
    seed: int,
    hidden: int,
    num_frames: int = 81,
    walls: Walls = "standing",
    steps: int | tuple[int, ...] | None = None,
    window: Window = "settings",
    on_progress: Callable[[int], None] | None = None,
) -> OcclusionScore:
    """Continue true clips whose captions leave out the colour, from the middle of an occlusion.

    The first ``KNOWN_BLOCKS`` blocks are the encoded render, given to the model as conditioning latents; the object is
    behind a wall when they end.

    Args:
        pipe: the model.
        clips: how many.
        seed: of scenes and noise.
        hidden: video frames without the object, at least; with moving walls exactly.
        num_frames: video frames of every clip, conditioning ones included.
        walls: "standing" as in the world that models learn, which occlude the object for up to about 10 video frames;
            "moving" curtains for any length.
        steps, window: instead of the model's own settings.
        on_progress: called with the number of clips done.

    Raises:
        Arl2Error: no clips, or an occlusion that does not fit the clip or the walls.
    """
    if clips < 1:
        raise Arl2Error(f"The number of clips is {clips}; give 1 or more.")
    known = pipe.codec.frames_of(0, KNOWN_BLOCKS * pipe.block_frames)
    find, judge = {
        "standing": (standing_occlusions, _by_evaluator),
        "moving": (moving_occlusions, _by_colour),
    }[walls]
    scenes = find(clips, seed=seed, hidden=hidden, known=known, num_frames=num_frames)
    captions = captions_of(scenes)
    model: dict[str, Share] = {}
    truth: dict[str, Share] = {}
    for first in range(0, clips, BATCH):
        part = scenes.select(slice(first, first + BATCH))
        video = render(part, num_frames)
        blocks = pipe.stream(
            captions[first : first + BATCH],
            num_frames=num_frames,
            seed=seed + first,
            steps=steps,
            window=window,
            known=pipe.codec.encode(video[:, :, :known].to(pipe.device)),
            rewind_blocks=0,
        )
        generated = torch.cat(list(blocks_video(blocks)), dim=2)
        model = _added(model, judge(generated, part, known))
        truth = _added(truth, judge(video, part, known))
        if on_progress is not None:
            on_progress(min(first + BATCH, clips))
    return OcclusionScore(model=model, truth=truth, hidden=hidden, clips=clips)


def clip_length(pipe: ARL2Pipeline, hidden: int) -> int:
    """Video frames of clips with an occlusion of ``hidden`` by a moving wall: ``READ_FRAMES`` or more."""
    known = pipe.codec.frames_of(0, KNOWN_BLOCKS * pipe.block_frames)
    return max(READ_FRAMES, known + hidden + _AFTER_MOVING_WALL)


def standing_occlusions(count: int, *, seed: int, hidden: int, known: int, num_frames: int) -> Scenes:
    """Scenes of the usual world whose object is behind its wall at video frame ``known``, for ``hidden`` or more.

    Raises:
        Arl2Error: too few walls occlude the object for that long.
    """
    _check_length(hidden)
    found: list[Scenes] = []
    for draw in range(_BATCHES):
        scenes = sample_scenes(
            _SCENES_A_BATCH,
            seed=seed,
            first=draw * _SCENES_A_BATCH,
            wall_probability=1.0,
            hide_colour_probability=1.0,
            # Wide enough for slow and fast objects.
            wall_spare_range=(max(4.0, 0.8 * hidden), max(8.0, 1.4 * hidden)),
        )
        found.append(scenes.select(_occluded_at(scenes, hidden=hidden, known=known, num_frames=num_frames)))
        if sum(len(one) for one in found) >= count:
            break
    total = sum(len(one) for one in found)
    if total < count:
        raise Arl2Error(
            f"Only {total} scenes with a standing wall occlude their object for {hidden} video frames and show it "
            f"before and after within {num_frames}; ask for a shorter occlusion, or for moving walls."
        )
    return _joined(found).select(slice(0, count))


def moving_occlusions(count: int, *, seed: int, hidden: int, known: int, num_frames: int) -> Scenes:
    """Scenes whose object a moving curtain occludes for exactly ``hidden`` video frames, ``known`` among the first.

    Raises:
        Arl2Error: the clip is too short for the occlusion.
    """
    _check_length(hidden)
    lead = known - max(HIDDEN_EACH_SIDE, min(hidden // 2, known - MIN_LEAD, 8))
    needed = lead + hidden + 24
    if num_frames < needed:
        raise Arl2Error(
            f"Clips of {num_frames} video frames end too soon after an occlusion of {hidden} that begins at {lead}; "
            f"give at least {needed}."
        )
    scenes = sample_occlusions(count, seed=seed, hidden=hidden, lead=lead)
    return replace(scenes, hides_colour=torch.ones_like(scenes.hides_colour))


def _check_length(hidden: int) -> None:
    if hidden < 2 * HIDDEN_EACH_SIDE:
        raise Arl2Error(f"An occlusion of {hidden} video frames is too short; give at least {2 * HIDDEN_EACH_SIDE}.")


def _occluded_at(scenes: Scenes, *, hidden: int, known: int, num_frames: int) -> Tensor:
    """Which scenes occlude the object around video frame ``known``, and show it whole before and after."""
    behind, visible = _behind_and_visible(scenes, num_frames)
    before = behind[:, :known].flip(1).long().cumprod(1).sum(1)
    after = behind[:, known:].long().cumprod(1).sum(1)
    return (
        (before >= HIDDEN_EACH_SIDE)
        & (after >= HIDDEN_EACH_SIDE)
        & (before + after >= hidden)
        & (visible[:, :known].sum(1) >= SEEN_BEFORE)
        & (visible[:, known:].sum(1) >= SEEN_AFTER)
    )


def _behind_and_visible(
    scenes: Scenes, num_frames: int
) -> tuple[Bool[Tensor, "scenes frames"], Bool[Tensor, "scenes frames"]]:
    """Where the object is wholly behind the wall, and where it is wholly in the frame and clear of the wall."""
    place = trajectory(scenes, num_frames)
    along = torch.where(scenes.wall_is_level[:, None], place[..., 1], place[..., 0])
    apart = (along - wall_path(scenes, num_frames)).abs()
    radius, half = scenes.radius[:, None], scenes.wall_width[:, None] / 2
    inside = ((place >= radius[..., None]) & (place <= WORLD_SIZE - radius[..., None])).all(-1)
    return apart + radius <= half, inside & (apart - radius >= half)


def _joined(parts: list[Scenes]) -> Scenes:
    return Scenes(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def _by_evaluator(videos: Tensor, scenes: Scenes, known: int) -> dict[str, Share]:
    """Readings of the one occlusion that spans the cut."""
    del scenes
    readings = read_all(videos)
    spanning = [tuple(one for one in reading.occlusions if _spans(one, known)) for reading in readings]
    return score_occlusions(
        [replace(reading, occlusions=ones) for reading, ones in zip(readings, spanning, strict=True)]
    )


def _spans(occlusion: Occlusion, cut: int) -> bool:
    return occlusion.first < cut <= occlusion.first + occlusion.frames


def _by_colour(videos: Tensor, scenes: Scenes, known: int) -> dict[str, Share]:
    """The colour by area, from where the object of the true clip reappears."""
    names, colours = tuple(COLOURS), scenes.colour.tolist()
    _, visible = _behind_and_visible(scenes, videos.shape[2])
    back = (known + visible[:, known:].long().argmax(1)).tolist()
    hits = sum(
        shown_colour(video[:, frame:]) == names[colour]
        for video, frame, colour in zip(videos, back, colours, strict=True)
    )
    return {"colour": Share(hits, len(videos))}


def _added(one: dict[str, Share], other: dict[str, Share]) -> dict[str, Share]:
    before = {name: one.get(name, Share(0, 0)) for name in other}
    return {name: Share(share.hits + before[name].hits, share.of + before[name].of) for name, share in other.items()}
