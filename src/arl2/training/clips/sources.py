"""Where clips come from: a teacher's rollouts of prompts, as a source of clips by number."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.attention.plan import converted_layers
from arl2.errors import ConfigError
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.streams.options import SamplingOptions
from arl2.text.interface import TextPart
from arl2.training.clips.dataset import Clip
from arl2.training.clips.writing import ClipWriter

OnProgress = Callable[[float], None]
"""Called with the clips done, a fraction of one included."""


@dataclass(frozen=True)
class Prompt:
    """What one clip shows, and the seed of its noise (or of its scene)."""

    caption: str
    seed: int


@runtime_checkable
class ClipSource(Protocol):
    """Makes any clip by its number: what a clip is depends on nothing else."""

    def __len__(self) -> int: ...

    def clips(self, numbers: range, on_progress: OnProgress) -> Iterator[Clip]:
        """The clips of those numbers, in order, made lazily one by one or some at once."""
        ...


@runtime_checkable
class Openings(Protocol):
    """Conditioning frames of clips: true latents ``[B, C, known frames, h, w]`` of the clips of those numbers."""

    def __call__(self, numbers: range) -> Float[Tensor, "batch channels known h w"]: ...


class TeacherClips:
    """Rollouts of a softmax model, block by block with its own sampler, as latents: nothing is decoded.

    Args:
        pipe: the teacher, on its device.
        prompts: one clip each.
        latent_frames: of every clip, conditioning frames included; whole blocks.
        batch: clips generated at once; a clip is the same in any batch, up to rounding.
        sampling: how to sample; frames and seeds are those of the clips.
        openings: conditioning frames of the clips.

    Raises:
        ConfigError: the model has converted layers, no prompts, or a prompt that is empty.
        GeometryError: frames that are not whole blocks.
    """

    def __init__(
        self,
        pipe: ARL2Pipeline,
        prompts: Sequence[Prompt],
        *,
        latent_frames: int,
        batch: int = 1,
        sampling: SamplingOptions | None = None,
        openings: Openings | None = None,
    ) -> None:
        plan = str(pipe.transformer.config.layer_plan)
        if converted_layers(plan):
            raise ConfigError(
                f"The teacher has converted layers (plan {plan}), but a teacher is a softmax model: give the original "
                "model that it was made from."
            )
        check_prompts(prompts)
        self._pipe, self._prompts, self._openings = pipe, prompts, openings
        self._batch = batch
        frames = pipe.codec.frames_of(0, latent_frames)
        self._sampling = replace(sampling or SamplingOptions(), num_frames=frames, seed=None)
        self._blocks = latent_frames // pipe.block_frames

    def __len__(self) -> int:
        return len(self._prompts)

    def clips(self, numbers: range, on_progress: OnProgress) -> Iterator[Clip]:
        """As ``ClipSource.clips``; errors as for a call of the pipeline."""
        for first in range(numbers.start, numbers.stop, self._batch):
            some = range(first, min(first + self._batch, numbers.stop))
            prompts = [self._prompts[number] for number in some]
            text = embed(self._pipe.text, [prompt.caption for prompt in prompts])
            done = first - numbers.start

            def report(pipe: ARL2Pipeline, block: int, _: object, done: int = done, count: int = len(some)) -> None:
                on_progress(done + count * min(1.0, (block + 1) / self._blocks))

            made = self._pipe(
                prompt_embeds=text,
                options=self._sampling,
                seed=[prompt.seed for prompt in prompts],
                known=None if self._openings is None else self._openings(some),
                output_type="latent",
                callback_on_block_end=report,
                return_dict=False,
            )
            assert isinstance(made, tuple)
            for prompt, rows, latents in zip(prompts, text, made[0], strict=True):
                yield Clip(latents.float().cpu(), own_rows(rows), prompt.caption, prompt.seed)


@torch.no_grad()
def embed(text: TextPart, prompts: list[str]) -> Float[Tensor, "batch words width"]:
    """Prompt embeddings, without gradients; errors and warnings are the text part's."""
    return text.encode(prompts).detach()


def own_rows(rows: Float[Tensor, "words width"]) -> Float[Tensor, "own width"]:
    """The rows of one prompt up to its end, on the CPU, without the zeros behind it; of no words, one row of zeros."""
    own = rows.float().cpu()
    used = own.ne(0).any(1).nonzero()
    return own[: int(used[-1]) + 1 if len(used) else 1].clone()


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Raise ``ConfigError`` unless there are prompts, none of them empty, with seeds that fit a shard."""
    if not prompts:
        raise ConfigError("There are no prompts to make clips of; give one or more.")
    for number, prompt in enumerate(prompts):
        if not prompt.caption.strip():
            raise ConfigError(f"Prompt {number} is empty; give each clip a caption.")
        if not 0 <= prompt.seed < 2**63:
            raise ConfigError(f"Prompt {number} has the seed {prompt.seed}; give a whole number from 0 to 2**63 - 1.")


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """A short hash of all captions and seeds: a folder is continued with the same ones only."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt.seed}\0{prompt.caption}\0".encode())
    return digest.hexdigest()[:16]


def write_clips(
    writer: ClipWriter,
    source: ClipSource,
    *,
    rank: int = 0,
    processes: int = 1,
    on_progress: OnProgress = lambda done: None,
    on_shard: Callable[[int], None] = lambda shard: None,
) -> int:
    """Write the shards that are missing; of several processes each takes every ``processes``-th, so none meet.

    Args:
        writer: of the folder.
        source: as many clips as the writer's index says.
        rank, processes: which of how many this process is.
        on_progress: called with the clips done by this process.
        on_shard: called with the number of every completed shard.

    Returns:
        How many shards were written.

    Raises:
        ConfigError: source and index do not agree.
        CheckpointError: as for ``ClipWriter.write``.
    """
    if len(source) != writer.index.clips:
        raise ConfigError(f"The source has {len(source)} clips and the folder's index {writer.index.clips}.")
    mine = [shard for shard in writer.missing() if shard % processes == rank]
    before = 0
    for shard in mine:
        numbers = writer.index.clips_of(shard)

        def report(done: float, before: int = before) -> None:
            on_progress(before + done)

        writer.write(shard, source.clips(numbers, report))
        before += len(numbers)
        on_progress(before)
        on_shard(shard)
    return len(mine)
