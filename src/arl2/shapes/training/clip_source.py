"""Clips of the shapes world: captions for a teacher, true first blocks for it to continue, or whole true clips."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import ConfigError, GeometryError
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.shapes.prompts.captions import PARAPHRASES, captions_of
from arl2.shapes.world.occluded import RUN, sample_occluded_scenes
from arl2.shapes.world.renderer import render
from arl2.shapes.world.scene import Scenes, sample_scenes
from arl2.training.clips.dataset import Clip
from arl2.training.clips.sources import OnProgress, Prompt, embed, own_rows

DEFAULT_NO_COLOUR = 0.15


@dataclass(frozen=True)
class PromptedScenes:
    """Scenes and a caption for each, in one of its paraphrases; clip ``i`` depends on the seed and ``i`` alone."""

    scenes: Scenes
    prompts: tuple[Prompt, ...]

    @classmethod
    def sample(
        cls, count: int, *, seed: int, no_colour: float = DEFAULT_NO_COLOUR, hiding: bool = False
    ) -> "PromptedScenes":
        """Sample scenes.

        Args:
            count: how many.
            seed: of scenes and paraphrases; clip ``i`` has the noise of ``seed + i``.
            no_colour: share of captions that leave the colour out.
            hiding: scenes whose object is occluded for a while and whose captions all leave the colour out.

        Raises:
            ConfigError: no scenes.
            Arl2Error: a share outside 0 to 1.
        """
        if count < 1:
            raise ConfigError(f"The number of scenes is {count}; give 1 or more.")
        if hiding:
            scenes = sample_occluded_scenes(-(-count // RUN) * RUN, seed=seed).select(slice(0, count))
        else:
            scenes = sample_scenes(count, seed=seed, hide_colour_probability=no_colour)
        captions = captions_of(scenes, [_paraphrase(seed, number) for number in range(count)])
        return cls(scenes, tuple(Prompt(caption, seed + number) for number, caption in enumerate(captions)))

    def latents(
        self, pipe: ARL2Pipeline, numbers: range, latent_frames: int
    ) -> Float[Tensor, "batch channels frames h w"]:
        """The first latent frames of these scenes, rendered and encoded."""
        video = render(self.scenes.select(slice(numbers.start, numbers.stop)), pipe.codec.frames_of(0, latent_frames))
        with torch.no_grad():
            return pipe.codec.encode(video.to(pipe.device))


@dataclass(frozen=True)
class SceneOpenings:
    """The first blocks of scenes as conditioning latents of a teacher (``Openings``)."""

    pipe: ARL2Pipeline
    scenes: PromptedScenes
    latent_frames: int

    @classmethod
    def of_blocks(cls, pipe: ARL2Pipeline, scenes: PromptedScenes, blocks: int, *, clip_frames: int) -> "SceneOpenings":
        """``blocks`` first blocks; raises ``GeometryError`` if nothing is left of a clip to generate."""
        frames = (pipe.settings.first_block_frames or pipe.block_frames) + (blocks - 1) * pipe.block_frames
        if blocks < 1 or frames >= clip_frames:
            raise GeometryError(
                f"{blocks} conditioning blocks do not fit clips of {clip_frames} latent frames; give at least 1 and "
                "leave a block to generate (for whole true clips: --real)."
            )
        return cls(pipe, scenes, frames)

    def __call__(self, numbers: range) -> Float[Tensor, "batch channels known h w"]:
        return self.scenes.latents(self.pipe, numbers, self.latent_frames)


class SceneClips:
    """True clips: scenes rendered and encoded, with their captions.

    Args:
        pipe: whose codec and text part are used.
        scenes: what to render.
        latent_frames: of every clip.
        batch: clips encoded at once.
    """

    def __init__(self, pipe: ARL2Pipeline, scenes: PromptedScenes, *, latent_frames: int, batch: int = 1) -> None:
        self._pipe, self._scenes, self._frames, self._batch = pipe, scenes, latent_frames, batch

    def __len__(self) -> int:
        return len(self._scenes.prompts)

    def clips(self, numbers: range, on_progress: OnProgress) -> Iterator[Clip]:
        """As ``ClipSource.clips``."""
        for first in range(numbers.start, numbers.stop, self._batch):
            some = range(first, min(first + self._batch, numbers.stop))
            prompts: Sequence[Prompt] = self._scenes.prompts[some.start : some.stop]
            text = embed(self._pipe.text, [prompt.caption for prompt in prompts])
            latents = self._scenes.latents(self._pipe, some, self._frames)
            for prompt, rows, one in zip(prompts, text, latents, strict=True):
                yield Clip(one.float().cpu(), own_rows(rows), prompt.caption, prompt.seed)
            on_progress(some.stop - numbers.start)


def _paraphrase(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"paraphrase/{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % PARAPHRASES
