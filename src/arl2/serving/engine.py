"""Videos from jobs: one stream for the jobs made together, each block written as soon as it is decoded.

What asks for videos (prompts of a command, lines of a file, a Python program) makes jobs; how a finished video is
noted is its business, too: see ``arl2.serving.jobs`` and ``arl2.serving.generation``.
"""

import logging
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from arl2.geometry import count_blocks
from arl2.pipeline.pipeline import ARL2Pipeline, VideoBlock
from arl2.serving.encoded import EncodedPrompts
from arl2.serving.report import BlockReport
from arl2.streams.conditioning import VideoPrefix, frames_in_all, image_prefix, video_prefix
from arl2.streams.options import SamplingOptions
from arl2.streams.stream import Stream
from arl2.version import __version__
from arl2.video.formats import writing_failed
from arl2.video.pixels import Frames, check_scale, side_by_side
from arl2.video.writers import open_video
from arl2.video.writing import VideoWriter

logger = logging.getLogger(__name__)

# Frames of small models are enlarged to about this many pixels a side.
_SHOWN_SIDE = 256


def shown_scale(pipe: ARL2Pipeline) -> int:
    """How much the model's frames are enlarged by default."""
    return max(1, _SHOWN_SIDE // pipe.settings.height)


@dataclass(frozen=True, kw_only=True)
class GenerationJob:
    """One video to make.

    Attributes:
        number: its place in the list, from 0.
        prompt, seed: what it shows, and of which noise.
        frames: video frames, conditioning frames included; None is the model's number (after a video: that many more).
        path: the output. Jobs made together that have the same one are shown side by side.
        image, video: what it starts from, or continues.
        where: file and line that it comes from, for messages.
    """

    number: int
    prompt: str
    seed: int
    frames: int | None
    path: Path
    image: Path | None = None
    video: Path | None = None
    where: str = ""


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """What all jobs share.

    Attributes:
        model: what the person called it.
        sampling: how to sample; frames and seeds are each job's own.
        scale: how much pixels are enlarged.
        only_new: leave conditioning frames out of the file.
    """

    model: str
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    scale: int = 1
    only_new: bool = False


@dataclass(frozen=True)
class BlockDone:
    """A block is written.

    Attributes:
        jobs: those made together; ``job`` is the first.
        block: itself; ``blocks``: of the video in all.
        video_frames: that the file holds by now.
        frames: of each job, written just now; none where a block of conditioning frames is left out.
        report: the same for a progress line.
    """

    jobs: tuple[GenerationJob, ...]
    block: VideoBlock
    blocks: int
    video_frames: int
    frames: tuple[Frames, ...]
    report: BlockReport

    @property
    def job(self) -> GenerationJob:
        """The first, in number."""
        return self.jobs[0]


@runtime_checkable
class TakesTurns(Protocol):
    """What streams of one model enter for each block, so that none waits for more than a block of each other one."""

    @property
    def denoise(self) -> AbstractContextManager[Any]:
        """Held while a block is denoised and committed."""
        ...

    @property
    def decode(self) -> AbstractContextManager[Any]:
        """Held while a block is decoded."""
        ...


class VideoEngine:
    """Makes jobs into video files.

    Args:
        pipe: the model, on its device.
        settings: shared by all jobs.
        prefix: conditioning frames of every job; None: each job's own image or video.
        turns: of the model, where other streams run beside; None: there are none.
    """

    def __init__(
        self,
        pipe: ARL2Pipeline,
        settings: JobSettings,
        prefix: VideoPrefix | None = None,
        turns: TakesTurns | None = None,
    ) -> None:
        self.pipe, self.settings, self._turns = pipe, settings, turns
        self.prompts = EncodedPrompts(pipe.text, settings.sampling.over(pipe.settings))
        self._prefix = prefix

    def prefix(self, job: GenerationJob) -> VideoPrefix | None:
        """What a job's video starts with."""
        if self._prefix is not None:
            return self._prefix
        if job.image is not None:
            return image_prefix(self.pipe, job.image)
        return None if job.video is None else video_prefix(self.pipe, job.video)

    def frames(self, job: GenerationJob, prefix: VideoPrefix | None) -> int:
        """Video frames of a job in all."""
        if job.frames is not None:
            return job.frames
        return frames_in_all(self.pipe, prefix if job.video is not None else None)

    def stream(self, jobs: Sequence[GenerationJob], prefix: VideoPrefix | None, frames: int) -> Stream:
        """The stream of jobs made together; it is checked, and nothing generated, before the first block.

        Raises:
            Arl2Error: as ``ARL2Pipeline.stream``.
            GeometryError: a scale that leads to frames larger than a file can have.
        """
        check_scale(self.pipe.settings.height, self.pipe.settings.width, self.settings.scale)
        known = None if prefix is None else prefix.latents.to(self.pipe.device).expand(len(jobs), -1, -1, -1, -1)
        negative, sampling = self.prompts.negative(), self.settings.sampling
        return self.pipe.stream(
            options=replace(
                sampling,
                num_frames=frames,
                seed=tuple(job.seed for job in jobs),
                negative_prompt=sampling.negative_prompt if negative is None else None,
            ),
            prompt_embeds=self.prompts.of([job.prompt for job in jobs]),
            negative_prompt_embeds=negative,
            known=known,
            rewind_blocks=0,
        )

    def make(
        self, jobs: Sequence[GenerationJob], *, videos: int, done: float, share: float
    ) -> Generator[BlockDone, None, None]:
        """Generate jobs together and write their files, which closing the iterator completes as far as they are.

        Args:
            jobs: of the same length and start.
            videos: of the command in all.
            done, share: part of the command's work that is done before, and that these jobs are.

        Raises:
            VideoFileError: a file cannot be written.
            Arl2Error: as ``stream``.
        """
        started, written = time.perf_counter(), 0
        jobs, prefix = tuple(jobs), self.prefix(jobs[0])
        frames = self.frames(jobs[0], prefix)
        latent_frames = self.pipe.plan_frames(frames).latent_frames
        blocks = count_blocks(latent_frames, self.pipe.block_frames, self.pipe.settings.first_block_frames)
        given = 0 if prefix is None else prefix.latents.shape[2]
        files = {
            path: [n for n, job in enumerate(jobs) if job.path == path]
            for path in dict.fromkeys(job.path for job in jobs)
        }
        fps = self.pipe.settings.fps
        try:
            with ExitStack() as stack:
                writers = {
                    path: stack.enter_context(
                        open_video(
                            path,
                            fps=fps,
                            scale=self.settings.scale,
                            settings=self.metadata([jobs[n] for n in shown], frames),
                        )
                    )
                    for path, shown in files.items()
                }
                generated = self.stream(jobs, prefix, frames)
                passed = self._pass_through(jobs, writers, prefix)
                for block in self._blocks(generated, blocks):
                    video: tuple[Frames, ...] = ()
                    if not (self.settings.only_new and block.frames.start < given):
                        video = tuple(block.pixels(n) for n in range(len(jobs)))
                        for path, shown in files.items():
                            if not (path in passed and block.frames.start < given):
                                writers[path].write(side_by_side([video[n] for n in shown]))
                        written += block.video.shape[2]
                    report = BlockReport(
                        index=block.index,
                        blocks=blocks,
                        file=jobs[0].path,
                        video_frames=written,
                        video_seconds=written / fps,
                        video=jobs[0].number,
                        videos=videos,
                        share=done + share * (block.index + 1) / blocks,
                        fps=len(jobs) * written / (time.perf_counter() - started),
                    )
                    yield BlockDone(jobs, block, blocks, written, video, report)
        except OSError as error:
            raise writing_failed(jobs[0].path, error) from error

    def follow(self, jobs: Sequence[GenerationJob]) -> Generator[bool, None, None]:
        """``make`` on a rank that writes nothing: the same passes, without decoding.

        Yields:
            After every block, whether more follow.

        Raises:
            Arl2Error: as ``stream``.
        """
        prefix = self.prefix(jobs[0])
        frames = self.frames(jobs[0], prefix)
        latent_frames = self.pipe.plan_frames(frames).latent_frames
        with self.stream(jobs, prefix, frames) as stream:
            for _ in range(count_blocks(latent_frames, self.pipe.block_frames, self.pipe.settings.first_block_frames)):
                yield stream.latents_next().frames.stop < latent_frames

    def _blocks(self, stream: Stream, count: int) -> Iterator[VideoBlock]:
        if self._turns is None:
            yield from stream
            return
        for _ in range(count):
            with self._turns.denoise:
                latents = stream.latents_next()
            with self._turns.decode:
                block = stream.decode(latents)
            yield block

    def _pass_through(
        self, jobs: Sequence[GenerationJob], writers: Mapping[Path, VideoWriter], prefix: VideoPrefix | None
    ) -> set[Path]:
        """Begin outputs with the packets of the video that they continue; those of which that can be done."""
        source = None if prefix is None else prefix.source
        if prefix is None or source is None or self.settings.only_new:
            return set()
        settings, scale = self.pipe.settings, self.settings.scale
        height, width = settings.height * scale, settings.width * scale
        passed = set()
        for path, writer in writers.items():
            alone = sum(job.path == path for job in jobs) == 1 and not prefix.left_out
            if alone and writer.begin_with(source, frames=prefix.video_frames, height=height, width=width):
                passed.add(path)
            else:
                logger.warning(
                    "The frames of '%s' are encoded again in '%s', which loses a little each time; an .mp4 or a folder "
                    "of PNGs of this program, extended at the same size in the same format, is passed through.",
                    source,
                    path,
                )
        return passed

    def metadata(self, jobs: Sequence[GenerationJob], frames: int) -> dict[str, Any]:
        """What made the file of these jobs; kept in it, and in a folder's listing."""
        prompts = [job.prompt for job in jobs]
        shown = {"prompt": prompts[0]} if len(jobs) == 1 else {"prompts": prompts}
        return {**shown, **self.shared_metadata(jobs[0].seed, frames)}

    def shared_metadata(self, seed: int, frames: int) -> dict[str, Any]:
        """``metadata`` without prompts."""
        settings = self.settings.sampling.over(self.pipe.settings)
        return {
            "model": self.settings.model,
            "seed": seed,
            "num_frames": frames,
            "levels": settings.sampler().timesteps_of(1),
            "first_block_candidates": settings.first_block_candidates,
            "window": settings.window,
            "height": settings.height,
            "width": settings.width,
            "fps": settings.fps,
            "arl2": __version__,
        }
