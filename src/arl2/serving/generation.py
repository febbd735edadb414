"""Prompts of one command to videos: several at once, each in a file or side by side, with contact sheet and latents."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from arl2.files.atomic import atomic_file
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.engine import BlockDone, GenerationJob, JobSettings, VideoEngine, shown_scale
from arl2.serving.file_names import OutputPlan
from arl2.serving.manifest import read_listing, write_listing
from arl2.serving.report import ShowsBlocks, Stop
from arl2.streams.conditioning import VideoPrefix
from arl2.streams.options import SamplingOptions
from arl2.video.formats import VideoFileError
from arl2.video.pixels import Frames
from arl2.video.sheet import contact_sheet
from arl2.video.writers import load_writer

# Prompts generated at once. Seeds are each prompt's own, but sums are taken in another order than alone, and every
# block builds on the differences of those before it: after 161 video frames latents were 2e-5 to 2.7e-2 apart.
PROMPTS_AT_ONCE = 16
_SHEET_COLUMNS = 12
# On the contact sheet, frames of small models are enlarged to about this many pixels a side.
_SHEET_SIDE = 128


class Generation:
    """One run: what is written, and what is kept for the contact sheet and the latents.

    Args:
        pipe: the model, on its device.
        prompts: one video each; prompt ``i`` has seed ``seed + i``.
        plan: where the videos go.
        model: what the person called the model, for the files' metadata.
        sampling: how to sample.
        num_frames: of every video.
        scale: how much pixels are enlarged; None enlarges small frames.
        known: what all videos start with.
        only_new: leave these conditioning frames out of everything that is written.
        keep_pictures, keep_latents: whether ``write_sheet`` and ``write_latents`` will be called.
    """

    def __init__(
        self,
        pipe: ARL2Pipeline,
        prompts: Sequence[str],
        plan: OutputPlan,
        *,
        model: str,
        sampling: SamplingOptions,
        num_frames: int,
        seed: int,
        scale: int | None,
        known: VideoPrefix | None = None,
        only_new: bool = False,
        keep_pictures: bool,
        keep_latents: bool,
    ) -> None:
        self.pipe, self.prompts, self.plan, self.num_frames = pipe, list(prompts), plan, num_frames
        self.frames = pipe.plan_frames(num_frames)
        settings = JobSettings(
            model=model,
            sampling=sampling,
            scale=scale or shown_scale(pipe),
            only_new=only_new,
        )
        self._engine = VideoEngine(pipe, settings, known)
        self._jobs = [
            GenerationJob(number=n, prompt=self.prompts[n], seed=seed + n, frames=num_frames, path=output.path)
            for output in plan.outputs
            for n in output.prompts
        ]
        self.written: list[Path] = []
        self.video_frames = 0
        self._every = -(-num_frames // _SHEET_COLUMNS)
        self._moments: dict[int, list[Frames]] | None = {} if keep_pictures else None
        self._latents: dict[int, list[Tensor]] | None = {} if keep_latents else None

    def check(self) -> None:
        """Refuse what cannot be generated before any file is opened; everything is loaded afterwards.

        Raises:
            Arl2Error: as for ``ARL2Pipeline.stream``.
            VideoFileError: the folder's listing cannot be read.
        """
        if self.plan.folder is not None:
            read_listing(self.plan.folder)
        for jobs in self._groups():
            self._engine.stream(jobs, self._engine.prefix(jobs[0]), self.num_frames)
        for output in self.plan.outputs:
            load_writer(output.path)

    def run(self, stop: Stop, progress: ShowsBlocks) -> None:
        """All prompts, until the end, or until a stop is requested and the current block is written."""
        groups = self._groups()
        for number, jobs in enumerate(groups):
            if stop.asked:
                return
            # Before the first block: what a failure leaves is named, too.
            self.written += list(dict.fromkeys(job.path for job in jobs))
            made = self._engine.make(jobs, videos=len(self._jobs), done=number / len(groups), share=1 / len(groups))
            with closing(made) as blocks:
                for event in blocks:
                    self._keep(event)
                    self.video_frames += sum(map(len, event.frames))
                    progress.block(event.report)
                    if stop.asked:
                        break
            if self.plan.folder is not None:
                entries = [{"file": job.path.name, **self._engine.metadata([job], self.num_frames)} for job in jobs]
                write_listing(self.plan.folder, entries)

    def follow(self, stop: Stop) -> None:
        """``run`` on a rank that writes nothing: the same blocks, and ``stop`` is asked at the same places."""
        for jobs in self._groups():
            if stop.asked:
                return
            with closing(self._engine.follow(jobs)) as blocks:
                for _ in blocks:
                    if stop.asked:
                        break

    def places(self) -> list[Path]:
        """Where to look: the files, or the one folder that holds them."""
        return self.written if self.plan.folder is None else [self.plan.folder]

    def write_sheet(self, path: Path) -> None:
        """A contact sheet with a row of frames for each prompt; raises ``VideoFileError`` if it cannot be written."""
        assert self._moments is not None
        clips = [(self.prompts[n], np.concatenate(pieces)) for n, pieces in sorted(self._moments.items())]
        contact_sheet(clips, every=1, scale=max(1, _SHEET_SIDE // self.pipe.settings.height), path=path)

    def write_latents(self, path: Path) -> None:
        """Tensors ``000``, ``001``, ... ``[C, F, h, w]``, one a prompt; the same bytes for the same settings.

        Raises:
            VideoFileError: the system refuses to write them.
        """
        assert self._latents is not None
        tensors = {f"{n:03d}": torch.cat(pieces, dim=1).contiguous() for n, pieces in self._latents.items()}
        settings = self._engine.shared_metadata(self._jobs[0].seed, self.num_frames)
        # One entry: several would be written in no fixed order.
        metadata = {"settings": json.dumps({"prompts": self.prompts, **settings}, sort_keys=True)}
        try:
            with atomic_file(path) as part:
                save_file(tensors, part, metadata=metadata)
        except (OSError, SafetensorError) as error:
            raise VideoFileError(f"The latents could not be written to '{path}' ({error}); the videos are.") from error

    def _groups(self) -> list[list[GenerationJob]]:
        count = len(self._jobs)
        size = count if self.plan.side_by_side else PROMPTS_AT_ONCE
        return [self._jobs[first : first + size] for first in range(0, count, size)]

    def _keep(self, event: BlockDone) -> None:
        """Few frames for the contact sheet, and latents, a sixteenth of the pixels, where they are wanted."""
        if not event.frames:
            return
        if self._moments is not None:
            first = -event.block.first_video_frame % self._every
            for job, frames in zip(event.jobs, event.frames, strict=True):
                self._moments.setdefault(job.number, []).append(frames[first :: self._every])
        if self._latents is not None:
            for job, latents in zip(event.jobs, event.block.latents.cpu(), strict=True):
                self._latents.setdefault(job.number, []).append(latents)
