"""Scores of a model on the shapes world: generated prompts read by the ground-truth evaluator, beside true renders."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import Arl2Error
from arl2.pipeline.pipeline import ARL2Pipeline, VideoBlock
from arl2.shapes.evaluator.flicker import flicker, stutter
from arl2.shapes.evaluator.oracle import MIN_FRAMES, Reading, read, read_all
from arl2.shapes.evaluator.scoring import Share, score_readings
from arl2.shapes.prompts.captions import captions_of
from arl2.shapes.prompts.request import SceneRequest, requests_of
from arl2.shapes.world.renderer import render
from arl2.shapes.world.scene import sample_scenes
from arl2.streams.request import Window
from arl2.video.codec import VideoCodec

# Video frames that are read at the start of a video, and at the end of a longer one.
READ_FRAMES = 81
# Visible share of the object from which its colour is reliable.
_SEEN = 0.3
BATCH = 16
# Scenes that no prompt is made of.
_CODEC_SEED = 2**40 + 3

OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class Steadiness:
    """Means over clips: see ``arl2.shapes.evaluator.flicker``. NaN where no clip could be judged."""

    flicker: float
    stutter: float

    def to_mapping(self) -> dict[str, float | None]:
        """By name, for JSON: None instead of NaN."""
        figures = {"flicker": self.flicker, "stutter": self.stutter}
        return {name: None if math.isnan(value) else value for name, value in figures.items()}


@dataclass(frozen=True)
class WorldScore:
    """Scores of some clips by the ground-truth evaluator.

    Attributes:
        shares: by attribute, and "all"; of the first ``READ_FRAMES`` video frames.
        last_second: colour as in the prompt, in the last second that shows the object; an object that the last
            ``READ_FRAMES`` video frames do not show counts as wrong. None for clips no longer than that.
        steadiness: of the same video frames as ``shares``.
        right: of each clip, in the order of the prompts, whether "all" is right; None if it could not be judged.
    """

    shares: dict[str, Share]
    last_second: Share | None
    steadiness: Steadiness
    right: tuple[bool | None, ...]


@dataclass(frozen=True)
class CodecScore:
    """PSNR in dB of held-out clips through the codec, and of the differences of neighbouring video frames."""

    psnr: float
    difference_psnr: float


@torch.no_grad()
def score_model(
    pipe: ARL2Pipeline,
    *,
    prompts: int,
    seed: int,
    num_frames: int,
    steps: int | tuple[int, ...] | None = None,
    first_block_candidates: int | None = None,
    window: Window = "settings",
    on_progress: OnProgress | None = None,
) -> WorldScore:
    """Generate the fixed prompts of a seed and score them. Prompt ``i`` is generated with seed ``seed + i``.

    Args:
        pipe: the model.
        prompts: how many; the first prompts of a seed do not depend on it.
        seed: of prompts and noise.
        num_frames: video frames of every clip.
        steps, first_block_candidates, window: instead of the model's own settings.
        on_progress: called with the number of clips done.

    Raises:
        Arl2Error: no prompts, or too few video frames.
    """
    scenes = sample_scenes(_at_least_one(prompts), seed=seed)
    captions = captions_of(scenes)

    def generated() -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, prompts, BATCH):
            batch = captions[first : first + BATCH]
            blocks = pipe.stream(
                batch,
                num_frames=num_frames,
                seed=seed + first,
                steps=steps,
                first_block_candidates=first_block_candidates,
                window=window,
                rewind_blocks=0,
            )
            yield _first_and_last(blocks_video(blocks))

    return _score_clips(generated(), requests_of(scenes), num_frames, pipe.settings.fps, on_progress)


def score_truth(
    *, prompts: int, seed: int, num_frames: int, fps: int = 16, on_progress: OnProgress | None = None
) -> WorldScore:
    """The ceiling: the same scenes as ``score_model``, rendered instead of generated."""
    scenes = sample_scenes(_at_least_one(prompts), seed=seed)

    def rendered() -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, prompts, BATCH):
            batch = scenes.select(slice(first, first + BATCH))
            length = min(num_frames, READ_FRAMES)
            yield render(batch, length), render(batch, length, start=num_frames - length)

    return _score_clips(rendered(), requests_of(scenes), num_frames, fps, on_progress)


@torch.no_grad()
def score_codec(
    codec: VideoCodec, *, clips: int = 24, num_frames: int = READ_FRAMES, device: torch.device | str = "cpu"
) -> CodecScore:
    """PSNR of true renders of a held-out seed after encoding and decoding, the peak being 2 (pixels in [-1, 1]).

    ``device`` is the codec's.
    """
    scenes = sample_scenes(_at_least_one(clips), seed=_CODEC_SEED)
    errors, difference_errors = [], []
    for first in range(0, clips, BATCH):
        video = render(scenes.select(slice(first, first + BATCH)), num_frames).to(device)
        error = codec.decode(codec.encode(video)).float().clamp(-1, 1) - video
        errors.append(error.square().mean((1, 2, 3, 4)))
        difference_errors.append(error.diff(dim=2).square().mean((1, 2, 3, 4)))
    return CodecScore(_psnr(torch.cat(errors)), _psnr(torch.cat(difference_errors)))


def colour_at_the_end(readings: list[Reading], requests: list[SceneRequest], *, fps: int) -> Share:
    """Share of the clips whose object has the requested colour in the last ``fps`` video frames that show it."""
    hits = asked = 0
    for reading, request in zip(readings, requests, strict=True):
        if request.colour is None:
            continue
        shown = (reading.visible >= _SEEN).nonzero().flatten().tolist()[-fps:]
        right = sum(reading.frame_colours[frame] == request.colour for frame in shown)
        asked += 1
        hits += 2 * right > len(shown)
    return Share(hits, asked)


def blocks_video(blocks: Iterator[VideoBlock]) -> Iterator[Float[Tensor, "batch 3 frames height width"]]:
    """Video of streamed blocks, clamped to [-1, 1], on the CPU."""
    for block in blocks:
        yield block.video.float().clamp(-1, 1).cpu()


def steadiness_of(
    videos: Float[Tensor, "clips 3 frames height width"], readings: list[Reading]
) -> tuple[list[float], list[float]]:
    """Flicker and stutter of every clip."""
    return flicker(videos).tolist(), [stutter(reading) for reading in readings]


def mean_steadiness(flickers: list[float], stutters: list[float]) -> Steadiness:
    """Means of what ``steadiness_of`` gave, without NaN."""
    return Steadiness(_mean(flickers), _mean(stutters))


def _score_clips(
    clips: Iterator[tuple[Tensor, Tensor]],
    requests: list[SceneRequest],
    num_frames: int,
    fps: int,
    on_progress: OnProgress | None,
) -> WorldScore:
    if num_frames < MIN_FRAMES:
        raise Arl2Error(f"Clips of {num_frames} video frames are too short to score; give at least {MIN_FRAMES}.")
    readings: list[Reading] = []
    endings: list[Reading] = []
    flickers: list[float] = []
    stutters: list[float] = []
    for start, end in clips:
        read_now = read_all(start)
        readings += read_now
        one, other = steadiness_of(start, read_now)
        flickers += one
        stutters += other
        if num_frames > READ_FRAMES:
            endings += [read(clip) for clip in end]
        if on_progress is not None:
            on_progress(len(readings))
    last_second = colour_at_the_end(endings, requests, fps=fps) if endings else None
    alone = [score_readings([one], [asked])["all"] for one, asked in zip(readings, requests, strict=True)]
    return WorldScore(
        score_readings(readings, requests),
        last_second,
        mean_steadiness(flickers, stutters),
        right=tuple(one.hits == 1 if one.of else None for one in alone),
    )


def _first_and_last(pieces: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """The first and the last ``READ_FRAMES`` of a stream, whatever its length, in constant memory."""
    start: list[Tensor] = []
    end: Tensor | None = None
    for piece in pieces:
        held = sum(one.shape[2] for one in start)
        if held < READ_FRAMES:
            start.append(piece[:, :, : READ_FRAMES - held])
        end = (piece if end is None else torch.cat((end, piece), dim=2))[:, :, -READ_FRAMES:]
    assert end is not None
    return torch.cat(start, dim=2), end


def _at_least_one(count: int) -> int:
    if count < 1:
        raise Arl2Error(f"The number of clips is {count}; give 1 or more.")
    return count


def _psnr(errors: Tensor) -> float:
    mean = errors.mean().item()
    return 10 * math.log10(4 / mean) if mean > 0 else math.inf


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
