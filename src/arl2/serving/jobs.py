"""A list of videos, made one after the other into a folder. What is finished is not made again.

Each video is a stream of its own, so its numbers do not depend on which others the list holds, nor on where an earlier
run was interrupted.
"""

import hashlib
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from arl2.errors import Arl2Error, ConfigError
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.engine import BlockDone, GenerationJob, JobSettings, TakesTurns, VideoEngine
from arl2.serving.file_names import file_name
from arl2.serving.manifest import Manifest, manifest_path, model_hash, read_manifest, remove_manifest, write_manifest
from arl2.serving.prompts_file import VideoRequest
from arl2.serving.report import Stop
from arl2.streams.conditioning import check_not_source, require_block_of_one
from arl2.streams.options import SamplingOptions
from arl2.version import __version__
from arl2.video.formats import VideoFileError, check_writable
from arl2.video.images import read_image
from arl2.video.reading import check_clip

_PROMPTS_AT_ONCE = 16
# Sampling options that each job has itself, or that the model's settings hold.
_OF_JOBS = ("num_frames", "seed", "height", "width")


@dataclass(frozen=True)
class Skipped:
    """A video that an earlier run finished."""

    job: GenerationJob


@dataclass(frozen=True)
class Finished:
    """A video is whole and its manifest written."""

    job: GenerationJob
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
    writes: bool = True,
) -> tuple[GenerationJob, ...]:
    """Names, seeds and places for all requests; checks them before any work.

    Args:
        requests: in their order; request ``i`` has seed ``seed + i`` and a name with ``i`` and its seed unless it says
            otherwise. A folder that an earlier version began keeps that version's names, which had no seed.
        folder: of all outputs; made if it is not there.
        seed, frames, image, video: for requests that do not say.
        writes: whether this process writes the videos; otherwise their places are not checked.

    Raises:
        ConfigError: two videos of one name.
        VideoFileError: a folder that cannot be written to.
    """
    jobs: list[GenerationJob] = []
    taken: dict[str, VideoRequest] = {}
    for number, one in enumerate(requests):
        own = (seed + number) % 2**64 if one.seed is None else one.seed
        name = one.file or _name(folder, number, one.prompt, own)
        # The manifest has the same stem, and some file systems do not tell case apart.
        stem = Path(name).stem.casefold()
        if stem in taken:
            raise ConfigError(f"{one.where}: the name '{name}' is taken by {taken[stem].where}; names differ in stem.")
        taken[stem] = one
        starts = one.image is not None or one.video is not None
        job = GenerationJob(
            number=number,
            prompt=one.prompt,
            seed=own,
            frames=one.frames or frames,
            path=folder / name,
            image=one.image if starts else image,
            video=one.video if starts else video,
            where=one.where,
        )
        with _naming(job):
            if writes:
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
        turns: of the model, where other streams run beside.
    """

    def __init__(
        self,
        pipe: ARL2Pipeline,
        jobs: Sequence[GenerationJob],
        settings: JobSettings,
        turns: TakesTurns | None = None,
    ) -> None:
        self.pipe, self.jobs, self.settings = pipe, tuple(jobs), settings
        self._engine = VideoEngine(pipe, settings, turns=turns)
        self._ranks = pipe.transformer.parallel
        self._model_hash = model_hash(pipe)
        # In the form that JSON gives them back.
        self._shared = {
            **_sampling_of(settings.sampling),
            "scale": settings.scale,
            "only_new": settings.only_new,
            "model_settings": {name: x for name, x in pipe.settings.to_mapping().items() if name != "num_frames"},
        }
        self._file_hashes: dict[Path, str] = {}

    def unfinished(self) -> tuple[GenerationJob, ...]:
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
            self._engine.stream(pending[:1], None, pending[0].frames or self.pipe.settings.num_frames)

    def _check_prompts(self, jobs: Sequence[GenerationJob]) -> None:
        """All at once, as a text encoder likes them; one by one only to name the line of the one it refuses."""
        prompts = self._engine.prompts
        for first in range(0, len(jobs), _PROMPTS_AT_ONCE):
            some = jobs[first : first + _PROMPTS_AT_ONCE]
            try:
                prompts.of([job.prompt for job in some])
            except Arl2Error:
                for job in some:
                    with _naming(job):
                        prompts.of([job.prompt])
                raise

    def run(self) -> Generator[JobEvent, None, None]:
        """Make what is not finished, in order, and tell each block.

        Closing the iterator completes the current file as far as it is; without a manifest, so that another run makes
        it again.

        Raises:
            Arl2Error: as ``check``; a file that cannot be read or written.
        """
        pending = len(self.unfinished())
        made = 0
        for job in self.jobs:
            with _naming(job):
                if self._ranks.any(self._is_finished(job)):
                    yield Skipped(job)
                else:
                    yield from self._make(job, made / max(1, pending), 1 / max(1, pending))
                    made += 1

    def follow(self, stop: Stop) -> None:
        """``run`` on a rank that writes nothing, where the first one is stopped by ``stop`` after a block or a video.

        Which videos are finished the first rank knows.
        """
        for job in self.jobs:
            if not self._ranks.any(False):
                with closing(self._engine.follow([job])) as blocks:
                    for more in blocks:
                        if stop.asked and more:
                            return
            if stop.asked:
                return

    def _make(self, job: GenerationJob, done: float, share: float) -> Iterator[JobEvent]:
        started = time.perf_counter()
        remove_manifest(job.path)
        digest, written = hashlib.sha256(), 0
        with closing(self._engine.make([job], videos=len(self.jobs), done=done, share=share)) as blocks:
            for event in blocks:
                digest.update(latent_bytes(event.block.latents))
                written = event.video_frames
                yield event
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

    def _is_finished(self, job: GenerationJob) -> bool:
        found = read_manifest(job.path)
        if found is None:
            return False
        wanted = (job.prompt, job.seed, self._model_hash, self._settings(job))
        return (found.prompt, found.seed, found.model_hash, found.settings) == wanted

    def _settings(self, job: GenerationJob) -> dict[str, Any]:
        """What decides a video, other than prompt, seed and model."""
        frames = job.frames if job.video is not None else self._engine.frames(job, None)
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


def _name(folder: Path, number: int, prompt: str, seed: int) -> str:
    old = folder / file_name(number, prompt)
    found = read_manifest(old)
    begun = old.is_file() and not manifest_path(old).exists()
    return old.name if begun or (found is not None and found.seed == seed) else file_name(number, prompt, seed=seed)


def _hash_of(path: Path) -> str:
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    inside = {one.name: _hash_of(one) for one in sorted(path.iterdir()) if one.is_file()}
    return hashlib.sha256(repr(inside).encode()).hexdigest()


@contextmanager
def _naming(job: GenerationJob) -> Iterator[None]:
    """Errors say which line of which file they come from."""
    place = f"{job.where}: " if job.where else ""
    try:
        yield
    except OSError as error:
        raise VideoFileError(f"{place}'{error.filename or job.path}': {error.strerror or error}") from error
    except Arl2Error as error:
        raise Arl2Error(f"{place}{error}") from error


def _sampling_of(options: SamplingOptions) -> dict[str, Any]:
    """The options as a manifest has them: three always, as in manifests of earlier versions, others where given."""
    always = ("steps", "first_block_candidates", "window")
    given = {name: value for name, value in vars(options).items() if value is not None or name in always}
    return {name: list(x) if isinstance(x, tuple) else x for name, x in given.items() if name not in _OF_JOBS}
