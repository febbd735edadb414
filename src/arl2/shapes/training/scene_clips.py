"""Batches of the shapes world: encoded clips of three kinds, cut to length, with captions."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from arl2.errors import ConfigError
from arl2.model.settings import seed_number
from arl2.shapes.codec import GroupCodec
from arl2.shapes.prompts.captions import PARAPHRASES, captions_of
from arl2.shapes.training.latents import SceneSource, encoded_clips
from arl2.shapes.world.occluded import RUN, sample_occluded_scenes
from arl2.shapes.world.renderer import visible_share
from arl2.shapes.world.scene import BOUNCE, Scenes, sample_scenes
from arl2.training.engine.config import check_number, check_share

_RENDERED_AT_ONCE = 256
# Visible share of an object from which on the blocks that follow can know it.
_IS_SEEN = 0.3


@dataclass(frozen=True, kw_only=True)
class SceneClipsConfig:
    """Which clips of the shapes world a run learns from.

    Attributes:
        codec: folder of the codec; its encoder and statistics must not change afterwards.
        latents: folder in which encoded clips are cached, shared by runs.
        clips: encoded clips to learn from, ``clip_frames`` latent frames each.
        clip_frames: latent frames of a clip.
        opening_clips: encoded clips of a single block (of the next seed): a stream's first block has only the prompt to
            go by, and wants many more examples than the blocks that follow.
        hiding_clips: encoded clips whose object is occluded for a while and whose captions leave its colour out (see
            ``arl2.shapes.world.occluded``).
        hiding_share: share of the batches of more than one block that come from them.
        data_seed: of the scenes.
        opening_shows: visible share of its object that a single block must reach in its first or its last video frame;
            others are left out. An object that is occluded from the start can only be drawn out of nothing later.
        bounce_weight: sampling weight of clips whose object bounces, against 1 of the others: where it turns, no
            caption says, so they are the hardest.
        late_weight: the same of longer clips whose object is occluded in the first block; few are, and only they show
            how it appears.
    """

    codec: str
    latents: str = "runs/latents"
    clips: int = 8192
    clip_frames: int = 27
    opening_clips: int = 0
    hiding_clips: int = 0
    hiding_share: float = 0.5
    data_seed: int = 1
    opening_shows: float = 0.0
    bounce_weight: float = 1.0
    late_weight: float = 1.0

    def __post_init__(self) -> None:
        seed_number(self.data_seed, name="data_seed")
        if self.hiding_clips % RUN:
            raise ConfigError(f"hiding_clips is {self.hiding_clips}; give a multiple of {RUN}.")
        check_share("hiding_share", self.hiding_share)
        check_share("opening_shows", self.opening_shows)
        check_number("bounce_weight", self.bounce_weight, above=0)
        check_number("late_weight", self.late_weight, above=0)


@dataclass(frozen=True)
class EncodedScenes:
    """Encoded clips and the scenes they show; ``weights`` are those of sampling, None: all alike."""

    latents: Float[Tensor, "clips channels frames height width"]
    scenes: Scenes
    weights: Float[Tensor, " clips"] | None = None

    def shown(self, video_frames: tuple[int, ...]) -> Float[Tensor, " clips"]:
        """The largest visible share of each object over these video frames."""
        shown = torch.zeros(len(self.scenes))
        for first in range(0, len(shown), _RENDERED_AT_ONCE):
            part = slice(first, first + _RENDERED_AT_ONCE)
            shares = [visible_share(self.scenes.select(part), 1, start=frame)[:, 0] for frame in video_frames]
            shown[part] = torch.stack(shares).amax(0)
        return shown

    def only(self, kept: Bool[Tensor, " clips"]) -> "EncodedScenes":
        """Some of them, in order."""
        weights = None if self.weights is None else self.weights[kept]
        return EncodedScenes(self.latents[kept], self.scenes.select(kept), weights)

    def weighted(self, which: Bool[Tensor, " clips"], weight: float) -> "EncodedScenes":
        """The same, with the sampling weight of some multiplied."""
        if weight == 1:
            return self
        before = torch.ones(len(self.scenes)) if self.weights is None else self.weights
        return replace(self, weights=torch.where(which, weight * before, before))

    def choose(self, count: int, draw: torch.Generator) -> Int64[Tensor, " chosen"]:
        """Numbers of clips, each sampled from all."""
        if self.weights is None:
            return torch.randint(len(self.scenes), (count,), generator=draw)
        return torch.multinomial(self.weights, count, replacement=True, generator=draw)


@dataclass(frozen=True)
class SceneBatch:
    """Some clips of the world.

    Attributes:
        clean: their latents, in float32 on the CPU.
        starts: latent frame of its scene that each clip begins with.
        captions, scenes: of the clips.
    """

    clean: Float[Tensor, "clips channels frames height width"]
    starts: Int64[Tensor, " clips"]
    captions: list[str]
    scenes: Scenes

    @property
    def from_start(self) -> Bool[Tensor, " clips"]:
        """The clips that begin where their scene does."""
        return self.starts == 0

    def shown_by(self, codec: GroupCodec, block_frames: int) -> Bool[Tensor, "clips blocks"]:
        """Whether a clip has shown its object by the end of each block.

        From there on the clip decides what is right. Before, nothing tells when the object appears, and the mean of
        all such clips would say that it never does.
        """
        blocks = self.clean.shape[2] // block_frames
        shown = torch.zeros(len(self.clean), blocks, dtype=torch.bool)
        for clip, start in enumerate(self.starts.tolist()):
            scene = self.scenes.select([clip])
            for block in range(blocks):
                first = start + block * block_frames
                before = codec.frames_of(0, first) if first else 0
                if bool(visible_share(scene, codec.frames_of(first, block_frames), start=before).max() >= _IS_SEEN):
                    shown[clip, block:] = True
                    break  # rendering is slow, and nearly all show their object in their first block
        return shown


class SceneSampler:
    """Samples longer clips, first blocks, and clips with an occlusion.

    Args:
        config: how many of each.
        codec: that encodes them.
        block_frames: latent frames of a first block.
        say: told what is being encoded.

    Raises:
        CheckpointError: latents that cannot be read.
    """

    def __init__(
        self, config: SceneClipsConfig, codec: GroupCodec, *, block_frames: int, say: Callable[[str], None]
    ) -> None:
        folder, seed, frames = Path(config.latents), config.data_seed, config.clip_frames

        def encoded(count: int, frames: int, seed: int, scenes: SceneSource, kind: str = "") -> EncodedScenes:
            latents = encoded_clips(
                codec, folder, clips=count, frames=frames, seed=seed, say=say, scenes=scenes, kind=kind
            )
            sampled = scenes(count, seed=seed)
            return EncodedScenes(latents, sampled).weighted(sampled.motion == BOUNCE, config.bounce_weight)

        self.block_frames, self.occluded_share = block_frames, config.hiding_share
        self.longer = self.openings = encoded(config.clips, frames, seed, sample_scenes)
        if config.opening_clips:
            self.openings = encoded(config.opening_clips, block_frames, seed + 1, sample_scenes)
        self.occluded: EncodedScenes | None = None
        if config.hiding_clips:
            self.occluded = encoded(config.hiding_clips, frames, seed, sample_occluded_scenes, "hiding-")
        ends = (0, codec.frames_of(0, block_frames) - 1)
        if config.opening_shows:
            self.openings = self.openings.only(self.openings.shown(ends) >= config.opening_shows)
            if not len(self.openings.scenes):
                raise ConfigError(
                    f"No first block shows {config.opening_shows:g} of its object; give opening_clips, or a smaller "
                    "opening_shows."
                )
        if config.late_weight != 1:
            self.longer = self.longer.weighted(self.longer.shown(ends) < _IS_SEEN, config.late_weight)

    def sample(self, count: int, frames: int, draw: torch.Generator) -> SceneBatch:
        """``count`` clips of ``frames`` latent frames; half of the longer ones begin anywhere: windows slide."""
        source = self.source(frames, draw)
        chosen = source.choose(count, draw)
        spare = source.latents.shape[2] - frames
        starts = torch.randint(spare + 1, (count,), generator=draw)
        from_start = torch.rand(count, generator=draw) < 0.5
        if frames == self.block_frames:
            from_start = torch.ones_like(from_start)  # a single block without its past can only be the first
        starts = starts.masked_fill(from_start, 0)
        cut = [source.latents[i, :, s : s + frames] for i, s in zip(chosen.tolist(), starts.tolist(), strict=True)]
        paraphrases = torch.randint(PARAPHRASES, (count,), generator=draw).tolist()
        scenes = source.scenes.select(chosen)
        return SceneBatch(torch.stack(cut).float(), starts, captions_of(scenes, paraphrases), scenes)

    def source(self, frames: int, draw: torch.Generator) -> EncodedScenes:
        """The clips that a batch of this length is taken from."""
        if frames == self.block_frames:
            return self.openings
        if self.occluded is not None:
            return self.occluded if bool(torch.rand((), generator=draw) < self.occluded_share) else self.longer
        return self.longer
