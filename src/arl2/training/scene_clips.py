"""Batches of the shapes world: encoded clips of three kinds, cut to length, with captions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arl2.shapes.captions import PARAPHRASES, captions_of
from arl2.shapes.hiding import sample_hiding_scenes
from arl2.shapes.world import Scenes, sample_scenes
from arl2.training.latents import SceneSource, encoded_clips
from arl2.video.group_codec import GroupCodec


@dataclass(frozen=True)
class EncodedScenes:
    """Encoded clips and the scenes they show."""

    latents: Float[Tensor, "clips channels frames height width"]
    scenes: Scenes


@dataclass(frozen=True)
class SceneBatch:
    """Some clips of the world.

    Attributes:
        clean: their latents, in float32 on the CPU.
        from_start: the clips that begin where their scene does.
        captions, scenes: of the clips.
    """

    clean: Float[Tensor, "clips channels frames height width"]
    from_start: Bool[Tensor, " clips"]
    captions: list[str]
    scenes: Scenes


class SceneClips:
    """Longer clips, openings (a stream's first block has only the prompt to go by), and clips that hide their object.

    Args:
        codec: that encodes them.
        folder: where latents are kept.
        clips, frames: how many of the longer ones, of how many latent frames.
        openings, block_frames: how many clips of a single block, from the next seed; 0: they are cut from the longer.
        hiding, hiding_share: how many clips hide their object (see ``arl2.shapes.hiding``), and which share of the
            batches of more than one block comes from them.
        seed: of the scenes.
        say: told what is being encoded.

    Raises:
        CheckpointError: latents that cannot be read.
    """

    def __init__(
        self,
        codec: GroupCodec,
        folder: Path,
        *,
        clips: int,
        frames: int,
        openings: int,
        block_frames: int,
        hiding: int,
        hiding_share: float,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        def encoded(count: int, frames: int, seed: int, scenes: SceneSource, kind: str = "") -> EncodedScenes:
            latents = encoded_clips(
                codec, folder, clips=count, frames=frames, seed=seed, say=say, scenes=scenes, kind=kind
            )
            return EncodedScenes(latents, scenes(count, seed=seed))

        self.block_frames, self.hiding_share = block_frames, hiding_share
        self.longer = encoded(clips, frames, seed, sample_scenes)
        self.openings = encoded(openings, block_frames, seed + 1, sample_scenes) if openings else self.longer
        self.hiding = encoded(hiding, frames, seed, sample_hiding_scenes, "hiding-") if hiding else None

    def draw(self, count: int, frames: int, draw: torch.Generator) -> SceneBatch:
        """``count`` clips of ``frames`` latent frames; half of the longer ones begin anywhere: windows slide."""
        source = self.source(frames, draw)
        chosen = torch.randint(len(source.latents), (count,), generator=draw)
        spare = source.latents.shape[2] - frames
        starts = torch.randint(spare + 1, (count,), generator=draw)
        from_start = torch.rand(count, generator=draw) < 0.5
        if frames == self.block_frames:
            from_start = torch.ones_like(from_start)  # a single block without its past can only be the first
        starts = starts.masked_fill(from_start, 0)
        cut = [source.latents[i, :, s : s + frames] for i, s in zip(chosen.tolist(), starts.tolist(), strict=True)]
        paraphrases = torch.randint(PARAPHRASES, (count,), generator=draw).tolist()
        scenes = source.scenes.select(chosen)
        return SceneBatch(torch.stack(cut).float(), starts == 0, captions_of(scenes, paraphrases), scenes)

    def source(self, frames: int, draw: torch.Generator) -> EncodedScenes:
        """The clips that a batch of this length is taken from."""
        if frames == self.block_frames:
            return self.openings
        if self.hiding is not None:
            return self.hiding if bool(torch.rand((), generator=draw) < self.hiding_share) else self.longer
        return self.longer
