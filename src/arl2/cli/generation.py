"""The work of ``arl2 generate``: batches of streams, each block written as soon as it is decoded."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from arl2.cli.outputs import Output, OutputPlan, Pictures, side_by_side, write_manifest
from arl2.cli.progress import BlockReport, Progress
from arl2.geometry import split_blocks
from arl2.interrupt import StopSignal
from arl2.pipeline.pipeline import ARL2Pipeline, VideoBlock
from arl2.serving.encoded import EncodedPrompts
from arl2.streams.conditioning import VideoPrefix
from arl2.streams.request import Window
from arl2.version import __version__
from arl2.video.formats import writing_failed
from arl2.video.sheet import contact_sheet
from arl2.video.writers import load_writer, open_video

# Prompts generated at once; seeds are each prompt's own, so videos do not depend on it.
PROMPTS_AT_ONCE = 16
_SHEET_COLUMNS = 12
# Small pictures are enlarged to about this many pixels a side.
_SHOWN_SIDE, _SHEET_SIDE = 256, 128


def shown_scale(pipe: ARL2Pipeline) -> int:
    """How much the model's pictures are enlarged unless somebody says."""
    return max(1, _SHOWN_SIDE // pipe.settings.height)


class Generation:
    """One run: what is written, and what is kept for the sheet and the latents.

    Args:
        pipe: the model, on its device.
        prompts: one video each; prompt ``i`` has seed ``seed + i``.
        plan: where the videos go.
        model: what the person called the model, for the files' metadata.
        num_frames, steps, first_block_candidates, window: see ``ARL2Pipeline``.
        scale: how much pixels are enlarged; None enlarges small pictures.
        known: what all videos start with.
        only_new: leave what is known out of everything that is written.
        keep_pictures, keep_latents: whether ``write_sheet`` and ``write_latents`` will be called.
    """

    def __init__(
        self,
        pipe: ARL2Pipeline,
        prompts: Sequence[str],
        plan: OutputPlan,
        *,
        model: str,
        num_frames: int,
        seed: int,
        steps: int | tuple[int, ...] | None,
        first_block_candidates: int | None,
        window: Window,
        scale: int | None,
        known: VideoPrefix | None = None,
        only_new: bool = False,
        keep_pictures: bool,
        keep_latents: bool,
    ) -> None:
        self.pipe, self.prompts, self.plan = pipe, list(prompts), plan
        self.model, self.num_frames, self.seed, self.steps, self.window = model, num_frames, seed, steps, window
        self.first_block_candidates = first_block_candidates
        self.frames = pipe.plan_frames(num_frames)
        self.scale = scale or shown_scale(pipe)
        self.known, self.only_new = known, only_new
        self._encoded = EncodedPrompts(pipe)
        self.written: list[Path] = []
        self.video_frames = 0
        self._every = -(-num_frames // _SHEET_COLUMNS)
        self._pictures: dict[int, list[Pictures]] | None = {} if keep_pictures else None
        self._latents: dict[int, list[Tensor]] | None = {} if keep_latents else None

    def check(self) -> None:
        """Refuse what cannot be generated before any file is opened; errors as for ``ARL2Pipeline.stream``.

        Everything is loaded afterwards.
        """
        for batch in self._batches():
            self._stream(batch)
        for output in self.plan.outputs:
            load_writer(output.path)

    def run(self, stop: StopSignal, progress: Progress) -> None:
        """All prompts, until the end, or until a stop is asked for and the current block is written."""
        for number, batch in enumerate(self._batches()):
            if stop.asked:
                return
            self._run_batch(batch, number, progress, stop)

    def places(self) -> list[Path]:
        """Where to look: the files, or the one folder that holds them."""
        return self.written if self.plan.folder is None else [self.plan.folder]

    def write_sheet(self, path: Path) -> None:
        """A row of moments for each prompt."""
        assert self._pictures is not None
        clips = [(self.prompts[i], np.concatenate(pieces)) for i, pieces in sorted(self._pictures.items())]
        contact_sheet(clips, every=1, scale=max(1, _SHEET_SIDE // self.pipe.settings.height), path=path)

    def write_latents(self, path: Path) -> None:
        """Tensors ``000``, ``001``, ... ``[C, F, h, w]``, one a prompt; the same bytes for the same settings."""
        assert self._latents is not None
        tensors = {f"{i:03d}": torch.cat(pieces, dim=1).contiguous() for i, pieces in self._latents.items()}
        # One entry: several would be written in no fixed order.
        facts = {"prompts": self.prompts, **self._shared_settings()}
        save_file(tensors, path, metadata={"settings": json.dumps(facts, sort_keys=True)})

    def _batches(self) -> list[range]:
        count = len(self.prompts)
        size = count if self.plan.side_by_side else PROMPTS_AT_ONCE
        return [range(first, min(first + size, count)) for first in range(0, count, size)]

    def _stream(self, batch: range) -> Iterator[VideoBlock]:
        return self.pipe.stream(
            prompt_embeds=self._encoded.of([self.prompts[i] for i in batch]),
            negative_prompt_embeds=self._encoded.negative(),
            num_frames=self.num_frames,
            seed=[self.seed + i for i in batch],
            steps=self.steps,
            first_block_candidates=self.first_block_candidates,
            window=self.window,
            # Nobody rewinds here.
            rewind_blocks=0,
            known=None if self.known is None else self._known_of(len(batch)),
        )

    def _known_of(self, batch: int) -> Tensor:
        assert self.known is not None
        return self.known.latents.to(self.pipe.device).expand(batch, -1, -1, -1, -1)

    def _run_batch(self, batch: range, number: int, progress: Progress, stop: StopSignal) -> None:
        outputs = [output for output in self.plan.outputs if output.prompts[0] in batch]
        blocks = len(
            split_blocks(self.frames.latent_frames, self.pipe.block_frames, self.pipe.settings.first_block_frames)
        )
        started, written = time.perf_counter(), 0
        try:
            with ExitStack() as stack:
                writers = [stack.enter_context(self._open(output)) for output in outputs]
                # Before the first block: what a failure leaves is named, too.
                self.written += [output.path for output in outputs]
                for block in self._stream(batch):
                    if not (self.only_new and self._is_known(block)):
                        pictures = {prompt: block.pixels(i) for i, prompt in enumerate(batch)}
                        for output, writer in zip(outputs, writers, strict=True):
                            writer.write(side_by_side([pictures[prompt] for prompt in output.prompts]))
                        self._keep(batch, block, pictures)
                        written += block.video.shape[2]
                        self.video_frames += len(batch) * block.video.shape[2]
                    progress.block(
                        BlockReport(
                            index=block.index,
                            blocks=blocks,
                            file=outputs[0].path,
                            video_frames=written,
                            video_seconds=written / self.pipe.settings.fps,
                            video=batch.start,
                            videos=len(self.prompts),
                            share=(number + (block.index + 1) / blocks) / len(self._batches()),
                            fps=len(batch) * written / (time.perf_counter() - started),
                        )
                    )
                    if stop.asked:
                        break
            if self.plan.folder is not None:
                write_manifest(self.plan.folder, [{"file": one.path.name, **self._settings(one)} for one in outputs])
        except OSError as error:
            raise writing_failed(outputs[0].path, error) from error

    def _is_known(self, block: VideoBlock) -> bool:
        return self.known is not None and block.frames.start < self.known.latents.shape[2]

    def _open(self, output: Output) -> Any:
        fps = self.pipe.settings.fps
        return open_video(output.path, fps=fps, scale=self.scale, settings=self._settings(output))

    def _keep(self, batch: range, block: VideoBlock, pictures: dict[int, Pictures]) -> None:
        """Few pictures for the sheet, and latents, a sixteenth of the pixels, if they are asked for."""
        if self._pictures is not None:
            first = -block.first_video_frame % self._every
            for prompt, video in pictures.items():
                self._pictures.setdefault(prompt, []).append(video[first :: self._every])
        if self._latents is not None:
            for prompt, latents in zip(batch, block.latents.cpu(), strict=True):
                self._latents.setdefault(prompt, []).append(latents)

    def _settings(self, output: Output) -> dict[str, Any]:
        """What made a file, for its metadata."""
        asked = [self.prompts[i] for i in output.prompts]
        of_file = {"prompt": asked[0]} if len(asked) == 1 else {"prompts": asked}
        return {**of_file, **self._shared_settings(), "seed": self.seed + output.prompts[0]}

    def _shared_settings(self) -> dict[str, Any]:
        settings = self.pipe.settings
        return {
            "model": self.model,
            "seed": self.seed,
            "num_frames": self.num_frames,
            "levels": settings.sampler(self.steps).timesteps_of(1),
            "first_block_candidates": self.first_block_candidates or settings.first_block_candidates,
            "window": settings.window if self.window == "settings" else self.window,
            "height": settings.height,
            "width": settings.width,
            "fps": settings.fps,
            "arl2": __version__,
        }
