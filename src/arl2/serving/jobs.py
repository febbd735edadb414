"""A list of videos, made one after the other into a folder. What is finished is not made again.

Each video is a stream of its own, so its numbers do not depend on which others the list holds, nor on where an earlier
run was cut.
"""

import hashlib
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from arl2.errors import Arl2Error, ConfigError
from arl2.geometry import split_blocks
from arl2.pipeline.pipeline import ARL2Pipeline, VideoBlock
from arl2.serving.encoded import EncodedPrompts
from arl2.serving.file_names import video_name
from arl2.serving.manifest import Manifest, read_manifest, remove_manifest, write_manifest
from arl2.serving.model_hash import model_hash
from arl2.serving.prompts_file import VideoRequest
from arl2.streams.conditioning import (
    VideoPrefix,
    check_not_source,
    frames_in_all,
    image_prefix,
    read_image,
    require_block_of_one,
    video_prefix,
)
from arl2.streams.request import Window
from arl2.version import __version__
from arl2.video.clips import check_clip
from arl2.video.formats import VideoFileError, check_writable
from arl2.video.writers import open_video

_PROMPTS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make.

    Attributes:
        number: its place in the list, from 0.
        prompt, seed: what it shows, and of which noise.
        frames: video frames, known ones included; None is the model's number (after a known video: that many more).
        path: the output.
        image, video: what it starts from, or goes on with.
        where: file and line that asked for it, for messages.
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
    """What all videos of a list share.

    Attributes:
        model: what the person called it.
        steps, first_block_candidates, window: see ``ARL2Pipeline``.
        scale: how much pixels are enlarged.
        only_new: leave known frames out of the file.
    """

    model: str
    steps: int | tuple[int, ...] | None = None
    first_block_candidates: int | None = None
    window: Window = "settings"
    scale: int = 1
    only_new: bool = False


@dataclass(frozen=True)
class Skipped:
    """A video that an earlier run finished."""

    job: Job


@dataclass(frozen=True)
class BlockDone:
    """A block is written: ``block`` of ``blocks``; the file holds ``video_frames`` by now."""

    job: Job
    block: VideoBlock
    blocks: int
    video_frames: int


@dataclass(frozen=True)
class Finished:
    """A video is whole and its manifest written."""

    job: Job
    manifest: Manifest


JobEvent = Skipped | BlockDone | Finished


def plan_jobs(
    requests: Sequence[VideoRequest],
    folder: Path,
    *,
    seed: int = 0,
    frames: int | None = None,
    image: Path | None = None,
    video: Path | None = None,
) -> tuple[Job, ...]:
    """Names, seeds and places for everything that is asked; checks them before any work.

    Args:
        requests: in their order; request ``i`` has seed ``seed + i`` and a name with ``i`` unless it says otherwise.
        folder: of all outputs; made if it is not there.
        seed, frames, image, video: for requests that do not say.

    Raises:
        ConfigError: two videos of one name.
        VideoFileError: a folder that cannot be written to.
    """
    jobs: list[Job] = []
    taken: dict[str, VideoRequest] = {}
    for number, one in enumerate(requests):
        name = one.file or video_name(number, one.prompt)
        # The manifest has the same stem, and some file systems do not tell case apart.
        stem = Path(name).stem.casefold()
        if stem in taken:
            raise ConfigError(f"{one.where}: the name '{name}' is taken by {taken[stem].where}; names differ in stem.")
        taken[stem] = one
        starts = one.image is not None or one.video is not None
        job = Job(
            number=number,
            prompt=one.prompt,
            seed=(seed + number) % 2**64 if one.seed is None else one.seed,
            frames=one.frames or frames,
            path=folder / name,
            image=one.image if starts else image,
            video=one.video if starts else video,
            where=one.where,
        )
        with _naming(job):
            check_writable(job.path)
            check_not_source(job.path, job.image or job.video)
        jobs.append(job)
    return tuple(jobs)


class JobList:
    """The jobs of a command, on a model.

    Args:
        pipe: the model, on its device.
        jobs: as ``plan_jobs`` gives them.
        settings: shared by all.
    """

    def __init__(self, pipe: ARL2Pipeline, jobs: Sequence[Job], settings: JobSettings) -> None:
        self.pipe, self.jobs, self.settings = pipe, tuple(jobs), settings
        self._encoded = EncodedPrompts(pipe)
        self._model_hash = model_hash(pipe)
        # In the form that JSON gives them back.
        self._shared = {
            "steps": list(settings.steps) if isinstance(settings.steps, tuple) else settings.steps,
            "first_block_candidates": settings.first_block_candidates,
            "window": settings.window,
            "scale": settings.scale,
            "only_new": settings.only_new,
            "model_settings": {name: x for name, x in pipe.settings.to_mapping().items() if name != "num_frames"},
        }
        self._file_hashes: dict[Path, str] = {}

    def unfinished(self) -> tuple[Job, ...]:
        """Jobs whose video is not there, not whole, or was made from something else."""
        return tuple(job for job in self.jobs if not self._is_finished(job))

    def check(self) -> None:
        """Refuse, before any work, what cannot be made; the message names the line.

        Raises:
            Arl2Error: a prompt that the text part refuses, an image that is none, settings that do not fit the model.
        """
        pending = self.unfinished()
        self._check_prompts(pending)
        for job in pending:
            with _naming(job):
                if job.video is not None:
                    check_clip(job.video)
                if job.image is not None:
                    require_block_of_one(self.pipe)
                    read_image(job.image)
        if pending:
            self._stream(pending[0], None, pending[0].frames or self.pipe.settings.num_frames)

    def _check_prompts(self, jobs: Sequence[Job]) -> None:
        """All at once, as a text encoder likes them; one by one only to name the line of the one it refuses."""
        for first in range(0, len(jobs), _PROMPTS_AT_ONCE):
            some = jobs[first : first + _PROMPTS_AT_ONCE]
            try:
                self._encoded.of([job.prompt for job in some])
            except Arl2Error:
                for job in some:
                    with _naming(job):
                        self._encoded.of([job.prompt])
                raise

    def run(self) -> Generator[JobEvent, None, None]:
        """Make what is not finished, in order, and tell each block. Closing the iterator completes the current file
        as far as it is; without a manifest, so that another run makes it again.

        Raises:
            Arl2Error: as ``check``; a file that cannot be read or written.
        """
        for job in self.jobs:
            with _naming(job):
                if self._is_finished(job):
                    yield Skipped(job)
                else:
                    yield from self._make(job)

    def _make(self, job: Job) -> Iterator[JobEvent]:
        started = time.perf_counter()
        remove_manifest(job.path)
        known = self._known(job)
        frames = self._frames(job, known)
        blocks = self._blocks(frames)
        known_frames = known.latents.shape[2] if known is not None else 0
        digest, written = hashlib.sha256(), 0
        facts = {"prompt": job.prompt, "seed": job.seed, "num_frames": frames, **self._shared}
        facts |= {"model": self.settings.model, "arl2": __version__}
        with open_video(job.path, fps=self.pipe.settings.fps, scale=self.settings.scale, settings=facts) as writer:
            for block in self._stream(job, known, frames):
                digest.update(latent_bytes(block.latents))
                if not self.settings.only_new or block.frames.start >= known_frames:
                    writer.write(block.pixels())
                    written += block.video.shape[2]
                yield BlockDone(job, block, blocks, written)
        manifest = Manifest(
            file=job.path.name,
            file_bytes=job.path.stat().st_size,
            prompt=job.prompt,
            seed=job.seed,
            frames=written,
            settings=self._settings(job),
            model_hash=self._model_hash,
            latents_sha256=digest.hexdigest(),
            seconds=round(time.perf_counter() - started, 3),
            model=self.settings.model,
            arl2=__version__,
        )
        write_manifest(job.path, manifest)
        yield Finished(job, manifest)

    def _stream(self, job: Job, known: VideoPrefix | None, frames: int) -> Iterator[VideoBlock]:
        return self.pipe.stream(
            prompt_embeds=self._encoded.of([job.prompt]),
            negative_prompt_embeds=self._encoded.negative(),
            num_frames=frames,
            seed=[job.seed],
            steps=self.settings.steps,
            first_block_candidates=self.settings.first_block_candidates,
            window=self.settings.window,
            known=None if known is None else known.latents.to(self.pipe.device),
            rewind_blocks=0,
        )

    def _known(self, job: Job) -> VideoPrefix | None:
        if job.image is not None:
            return image_prefix(self.pipe, job.image)
        return None if job.video is None else video_prefix(self.pipe, job.video)

    def _frames(self, job: Job, known: VideoPrefix | None) -> int:
        """Video frames in all."""
        if job.frames is not None:
            return job.frames
        return frames_in_all(self.pipe, known if job.video is not None else None)

    def _blocks(self, frames: int) -> int:
        latent_frames = self.pipe.plan_frames(frames).latent_frames
        return len(split_blocks(latent_frames, self.pipe.block_frames, self.pipe.settings.first_block_frames))

    def _is_finished(self, job: Job) -> bool:
        found = read_manifest(job.path)
        if found is None:
            return False
        asked = (job.prompt, job.seed, self._model_hash, self._settings(job))
        return (found.prompt, found.seed, found.model_hash, found.settings) == asked

    def _settings(self, job: Job) -> dict[str, Any]:
        """What decides a video besides prompt, seed and model."""
        frames = job.frames if job.video is not None else self._frames(job, None)
        start = {"image_sha256": self._file_hash(job.image), "video_sha256": self._file_hash(job.video)}
        return {**self._shared, "num_frames": frames, **start}

    def _file_hash(self, path: Path | None) -> str | None:
        """Of a file, or of all files of a folder; empty for one that is not there."""
        if path is None:
            return None
        if path not in self._file_hashes:
            self._file_hashes[path] = _hash_of(path) if path.exists() else ""
        return self._file_hashes[path]


def latent_bytes(latents: Float[Tensor, "1 channels frames height width"]) -> bytes:
    """What is hashed of a block: frame by frame, so that its cut into blocks does not matter; float32."""
    return latents[0].transpose(0, 1).detach().float().cpu().contiguous().numpy().tobytes()


def _hash_of(path: Path) -> str:
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    inside = {one.name: _hash_of(one) for one in sorted(path.iterdir()) if one.is_file()}
    return hashlib.sha256(repr(inside).encode()).hexdigest()


@contextmanager
def _naming(job: Job) -> Iterator[None]:
    """Errors say which line of which file they come from."""
    place = f"{job.where}: " if job.where else ""
    try:
        yield
    except OSError as error:
        raise VideoFileError(f"{place}'{error.filename or job.path}': {error.strerror or error}") from error
    except Arl2Error as error:
        raise Arl2Error(f"{place}{error}") from error
