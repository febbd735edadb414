"""Batches of training clips from folders of clips, some of which are held out for evaluation."""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import ConfigError, GeometryError
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.training.clips.dataset import ClipSet
from arl2.training.conversion.origins import check_origins
from arl2.training.conversion.students import Teacher


@runtime_checkable
class ReadableClips(Protocol):
    """Clips by number; ``ClipSet`` is one."""

    def __len__(self) -> int: ...

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Channels, latent frames, height and width of every clip."""
        ...

    @property
    def text_width(self) -> int:
        """Numbers for each word of the prompt embeddings."""
        ...

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, list[str]]:
        """Latents ``[B, C, F, h, w]``, prompt embeddings ``[B, words, width]``, captions."""
        ...


@dataclass(frozen=True)
class ClipBatch:
    """Some clips on the training device: latents, prompt embeddings, captions."""

    latents: Float[Tensor, "batch channels frames height width"]
    text: Float[Tensor, "batch words text"]
    captions: list[str]


class TrainingClips:
    """Several sets of clips as one, of which some clips are never trained on.

    Args:
        sets: of clips; all of one latent size.
        held_out: clips kept for evaluation, spread evenly over all.
        model: that will read them: its sizes must fit.
        device: where batches go.

    Raises:
        ConfigError: no clips, too few, or of sizes that the model does not take.
    """

    def __init__(
        self,
        sets: Sequence[ReadableClips],
        *,
        held_out: int,
        model: CausalWanTransformer3DModel,
        device: torch.device,
    ) -> None:
        if not sets:
            raise ConfigError("There are no clips; give clips=[FOLDER], folders that 'arl2 rollouts' wrote.")
        self._sets, self._device = tuple(sets), device
        self._ends = list(itertools.accumulate(len(one) for one in sets))
        total = self._ends[-1]
        if not 1 <= held_out < total:
            raise ConfigError(f"held_out is {held_out} of {total} clips; give 1 or more, and fewer than all.")
        _check_sizes(sets, model)
        self.held_out_numbers = tuple(range(0, total, total // held_out))[:held_out]
        kept = set(self.held_out_numbers)
        self._training_numbers = [i for i in range(total) if i not in kept]

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Channels, latent frames (of the shortest set), height and width."""
        channels, _, height, width = self._sets[0].latent_shape
        return channels, min(one.latent_shape[1] for one in self._sets), height, width

    def sample(self, count: int, frames: int, generator: torch.Generator) -> ClipBatch:
        """Training clips cut to ``frames`` latent frames from their start."""
        chosen = torch.randint(len(self._training_numbers), (count,), generator=generator).tolist()
        return self._batch([self._training_numbers[i] for i in chosen], frames)

    def held_out(self, numbers: range, frames: int) -> ClipBatch:
        """Clips ``numbers`` of those held out (from 0), cut to ``frames`` latent frames."""
        return self._batch([self.held_out_numbers[i] for i in numbers], frames)

    def _batch(self, numbers: Sequence[int], frames: int) -> ClipBatch:
        latents, texts, captions = [], [], []
        for number in numbers:
            which = bisect.bisect_right(self._ends, number)
            one = self._sets[which]
            clip, text, caption = one.batch([number - self._ends[which] + len(one)])
            latents.append(clip[0, :, :frames])
            texts.append(text[0])
            captions += caption
        padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        return ClipBatch(torch.stack(latents).float().to(self._device), padded.float().to(self._device), captions)


def open_clips(
    folders: Sequence[str],
    *,
    held_out: int,
    teacher: Teacher,
    name: str,
    device: torch.device,
    any_clips: bool = False,
) -> TrainingClips:
    """The clips of some folders.

    Args:
        folders, held_out, device: as for ``TrainingClips``.
        teacher: to be followed on them.
        name: of the teacher, for people.
        any_clips: also clips that another model made.

    Raises:
        CheckpointError: a folder without clips, or with a shard that is missing or cut.
        ConfigError: as for ``TrainingClips``, and for clips of another model.
    """
    sets = [ClipSet.open(folder) for folder in folders]
    clips = TrainingClips(sets, held_out=held_out, model=teacher.model, device=device)
    if not any_clips:
        check_origins(sets, teacher, name)
    return clips


def check_frames(lengths: Sequence[int], clips: TrainingClips, *, batch_frames: int) -> None:
    """Refuse lengths that clips do not have, or that no batch can hold; raises ``GeometryError``."""
    longest = clips.latent_shape[1]
    if max(lengths) > longest:
        raise GeometryError(f"frames asks for clips of {max(lengths)} latent frames, but they have {longest}.")
    if max(lengths) > batch_frames:
        raise GeometryError(f"batch_frames = {batch_frames} cannot hold a clip of {max(lengths)} latent frames.")


def _check_sizes(sets: Sequence[ReadableClips], model: CausalWanTransformer3DModel) -> None:
    channels, text_width = model.config.in_channels, model.config.text_dim
    sizes = {(one.latent_shape[0], *one.latent_shape[2:], one.text_width) for one in sets}
    first = next(iter(sizes))
    if len(sizes) > 1:
        raise ConfigError(f"The folders of clips differ in channels, height, width or text width: {sorted(sizes)}.")
    if (first[0], first[-1]) != (channels, text_width):
        raise ConfigError(
            f"The clips have {first[0]} latent channels and prompts of width {first[-1]}, but the teacher takes "
            f"{channels} and {text_width}; make clips with this teacher's codec and text part."
        )
