"""``arl2 generate PROMPT``: prompts to video files, written block by block as they are generated."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from arl2.cli.checks import check_source, check_there, exclusive
from arl2.cli.loading import load_pipeline
from arl2.cli.options import Command, Hidden
from arl2.cli.progress import Reporting, Summary
from arl2.cli.published import Published, translated
from arl2.cli.ranks import AgreedStop, Ranks, joined_ranks
from arl2.cli.standard_streams import say_error
from arl2.cli.usage import memory_words
from arl2.errors import ConfigError
from arl2.files.places import check_apart
from arl2.pipeline.options import ModelSource, SamplingOptions

if TYPE_CHECKING:
    from arl2.pipeline.pipeline import ARL2Pipeline
    from arl2.serving.file_names import OutputPlan
    from arl2.serving.generation import Generation
    from arl2.serving.jobs import JobList
    from arl2.serving.prompts_file import VideoRequest
    from arl2.streams.conditioning import VideoPrefix


@dataclass(frozen=True, kw_only=True)
class Generate(Command):
    """Generate a video for each prompt, block by block, in memory that does not grow with its length.

    Ctrl-C ends the video after the current block; the file is whole.

    Under torchrun (torchrun --nproc-per-node N -m arl2.cli.main generate ...) N GPUs generate each video together.

    The published code's options work, too: --config-path, --checkpoint-path, --data-path, --output-folder,
    --num-output-frames (latent frames), --use-ema, --i2v, --num-samples, --extended-prompt-path.

    Attributes:
        prompts: What the video shows; several prompts give several videos. They are computed together, in another order
            of sums than alone, so their videos differ slightly from those of separate commands.
        prompts_file: Prompts, one a line (.txt) or as objects of prompt and, where wanted, seed, frames, file, image,
            video (.jsonl). The output is a folder; finished videos in it are skipped: re-run the command to resume.
        image: Image to start from (models whose first block is one frame).
        extend: Video to continue; --frames counts its video frames, too.
        only_new: Leave the image or the extended video out of the output.
        output: .mp4, .gif, .webp, .y4m (raw), - (raw y4m to standard output), or a name without extension for a
            folder of PNGs. Several prompts: a file shows them side by side, a name without extension is a folder with
            an .mp4 each (default: an .mp4 named after the prompt and the seed).
        overwrite: Replace outputs that exist.
        sheet: Contact sheet of all videos, a .png.
        scale: Factor that enlarges every pixel (default: 4 for 64-pixel videos, 1 for large ones).
        latents: Latents of all videos, a .safetensors.
        threads: CPU threads (default: 1 for small models, else all cores).
    """

    positional: ClassVar = ("prompts",)
    light: ClassVar = True
    examples: ClassVar = (
        'arl2 generate "a red circle moves right on navy" --frames 81 -o red.mp4 --sheet red.png',
        "arl2 generate --prompts-file prompts.txt --model causal-forcing --dtype bf16 --device cuda -o videos",
    )
    prompts: tuple[str, ...] = ()
    prompts_file: Path | None = None
    image: Path | None = None
    extend: Path | None = None
    only_new: bool = False
    output: Path | None = None
    overwrite: bool = False
    sheet: Path | None = None
    scale: int | None = None
    latents: Path | None = None
    threads: int | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    source: ModelSource = field(default_factory=ModelSource)
    reporting: Reporting = field(default_factory=Reporting)
    published: Annotated[Published, Hidden()] = field(default_factory=Published)

    def __post_init__(self) -> None:
        exclusive({"--image": self.image, "--extend": self.extend})

    def run(self) -> int:
        """Generate, write, and say what it took; 130 if it was interrupted (what is written is whole)."""
        asked, notes = self._in_our_words() if self.published.given else (self, ())
        check_source(asked.source)
        with joined_ranks() as ranks:
            with ranks.together():
                if ranks.is_first:
                    asked.check()
            if not ranks.is_first:
                asked = replace(asked, reporting=Reporting(quiet=True))
            asked = replace(asked, source=ranks.on_own_gpu(asked.source))
            for note in notes:
                asked.reporting.voice(asked.output)(note)
            run = _run_prompts if asked.prompts_file is None else _run_prompts_file
            return run(asked, ranks)

    def check(self) -> None:
        """Refuse options that do not go together, and a folder of videos that cannot be written."""
        if self.prompts_file is not None:
            _checked_folder(self)
        elif not self.prompts:
            raise ConfigError("Give a prompt, or several, or --prompts-file FILE.")
        elif not all(prompt.strip() for prompt in self.prompts):
            raise ConfigError('The prompt is empty; give words, such as "a red circle moves right on navy".')
        elif self.only_new and self.image is None and self.extend is None:
            raise ConfigError("--only-new goes with --image or --extend: without them all frames are new.")
        check_there({"--image": self.image, "--extend": self.extend})

    def load(self, batch: int = 1, *, ranks: int = 1) -> "ARL2Pipeline":
        """The model, on its device, split over ``ranks``."""
        say = self.reporting.voice(self.output)
        return load_pipeline(self.source, self.sampling, threads=self.threads, batch=batch, ranks=ranks, say=say)

    def _in_our_words(self) -> "tuple[Generate, tuple[str, ...]]":
        """The same by this command's own options, and what is to be said about the others."""
        ours = translated(self.published, self.source, self.sampling, self.prompts_file, self.output)
        asked = replace(
            self,
            source=ours.source,
            sampling=ours.sampling,
            prompts_file=ours.prompts_file,
            output=ours.output,
            published=Published(num_samples=self.published.num_samples),
        )
        return asked, tuple(ours.notes)


def _planned(asked: Generate, seed: int) -> "OutputPlan":
    """Where the videos go, and that sheet and latents can be written, too."""
    from arl2.serving.file_names import plan_outputs
    from arl2.video.formats import check_file

    plan = plan_outputs(asked.prompts, asked.output, seed=seed, overwrite=asked.overwrite)
    for output in plan.outputs:
        check_apart({"--sheet": asked.sheet, "--latents": asked.latents, "--output": output.path})
    for path, suffix in ((asked.sheet, ".png"), (asked.latents, ".safetensors")):
        if path is not None:
            check_file(path, suffix, overwrite=asked.overwrite)

    from arl2.streams.conditioning import check_not_source

    for output in plan.outputs:
        check_not_source(output.path, asked.image or asked.extend)
    return plan


def _run_prompts(asked: Generate, ranks: Ranks) -> int:
    from arl2.serving.file_names import named_outputs

    seed = int(asked.sampling.seed or 0)  # type: ignore[arg-type]  # the command line gives one
    with ranks.together():
        plan = _planned(asked, seed) if ranks.is_first else named_outputs(asked.prompts, asked.output, seed=seed)

    from arl2.interrupt import StopSignal
    from arl2.serving.generation import PROMPTS_AT_ONCE, Generation
    from arl2.streams.conditioning import frames_in_all

    say = asked.reporting.voice(asked.output)
    started = time.perf_counter()
    pipe = asked.load(min(len(asked.prompts), PROMPTS_AT_ONCE), ranks=ranks.count)
    known = _known(pipe, asked)
    work = Generation(
        pipe,
        asked.prompts,
        plan,
        model=asked.source.name,
        num_frames=asked.sampling.num_frames or frames_in_all(pipe, known if asked.extend is not None else None),
        seed=seed,
        sampling=asked.sampling,
        scale=asked.scale,
        known=known,
        only_new=asked.only_new,
        keep_pictures=asked.sheet is not None,
        keep_latents=asked.latents is not None,
    )
    with ranks.together():
        if ranks.is_first:
            work.check()
    if not ranks.is_first:
        return _followed(pipe, work)
    if work.frames.note is not None:
        say(work.frames.note)
    if known is not None and asked.extend is not None:
        cut = f" ({known.left_out} at its start do not fill a block and are left out)" if known.left_out else ""
        say(f"continuing after {known.video_frames} video frames of {asked.extend}{cut}")
    loaded = time.perf_counter()
    with StopSignal() as signal, asked.reporting.progress() as progress:
        stop = AgreedStop(signal, pipe.transformer.parallel)
        work.run(stop, progress)
        seconds = time.perf_counter() - loaded
        if work.written and asked.sheet is not None:
            work.write_sheet(asked.sheet)
        if work.written and asked.latents is not None:
            work.write_latents(asked.latents)
        interrupted = stop.asked
        progress.done(
            Summary(files=work.written, video_frames=work.video_frames, seconds=seconds, interrupted=interrupted)
        )

    where = ", ".join(str(path) for path in work.places())
    if interrupted:
        done = f"what was done until then is whole in {where}" if work.written else "nothing was done yet"
        say_error(f"arl2 generate: interrupted; {done}")
        return 130
    say(f"wrote {where}")
    say(
        f"{work.video_frames} video frames in {seconds:.2f} s, written: {work.video_frames / seconds:.0f} a second; "
        f"peak memory {memory_words()}; the model loaded in {loaded - started:.2f} s"
    )
    return 0


def _followed(pipe: "ARL2Pipeline", work: "Generation | JobList") -> int:
    """The part of a rank that writes nothing; 130 if any rank was interrupted."""
    from arl2.interrupt import StopSignal

    with StopSignal() as signal:
        stop = AgreedStop(signal, pipe.transformer.parallel)
        work.follow(stop)
        return 130 if stop.asked else 0


def _known(pipe: "ARL2Pipeline", asked: Generate) -> "VideoPrefix | None":
    from arl2.streams.conditioning import image_prefix, video_prefix

    if asked.image is not None:
        return image_prefix(pipe, asked.image)
    return None if asked.extend is None else video_prefix(pipe, asked.extend)


def _run_prompts_file(asked: Generate, ranks: Ranks) -> int:
    """Make what is not finished yet, and say what it took; 130 if it was interrupted."""
    requests = _requests(asked)
    with ranks.together():
        folder = _checked_folder(asked) if ranks.is_first else asked.output or Path()

    from arl2.serving.engine import JobSettings, shown_scale
    from arl2.serving.jobs import JobList, plan_jobs

    with ranks.together():
        jobs = plan_jobs(
            requests,
            folder,
            seed=asked.sampling.seed or 0,  # type: ignore[arg-type]  # the command line gives one
            frames=asked.sampling.num_frames,
            image=asked.image,
            video=asked.extend,
            writes=ranks.is_first,
        )

    from arl2.cli.jobs import make_videos
    from arl2.interrupt import StopSignal

    say = asked.reporting.voice()
    pipe = asked.load(ranks=ranks.count)
    settings = JobSettings(
        model=asked.source.name,
        sampling=asked.sampling,
        scale=asked.scale or shown_scale(pipe),
        only_new=asked.only_new,
    )
    work = JobList(pipe, jobs, settings)
    with ranks.together():
        if ranks.is_first:
            work.check()
    if not ranks.is_first:
        return _followed(pipe, work)
    pending = len(work.unfinished())
    say(f"{len(jobs)} videos: {len(jobs) - pending} finished before, {pending} to make")
    started = time.perf_counter()
    with StopSignal() as signal, asked.reporting.progress() as progress:
        stop = AgreedStop(signal, pipe.transformer.parallel)
        made = make_videos(work, stop, progress)
        seconds = time.perf_counter() - started
        interrupted = stop.asked
        progress.done(
            Summary(files=made.finished, video_frames=made.video_frames, seconds=seconds, interrupted=interrupted)
        )
    if interrupted:
        part = f"; the part of '{made.partial}' that was done can be played" if made.partial is not None else ""
        say_error(
            f"arl2 generate: interrupted; {len(made.finished)} videos were finished in '{folder}'{part}. "
            "Re-run the command to resume.",
        )
        return 130
    say(f"wrote {len(made.finished)} videos to {folder}")
    say(
        f"{made.video_frames} video frames in {seconds:.2f} s, written: {made.video_frames / seconds:.0f} a second; "
        f"peak memory {memory_words()}"
    )
    return 0


def _requests(asked: Generate) -> "list[VideoRequest]":
    from arl2.serving.prompts_file import read_image_folder, read_prompts_file

    path = asked.prompts_file
    assert path is not None
    found = read_image_folder(path) if path.is_dir() else read_prompts_file(path)
    samples = asked.published.num_samples or 1
    for one in found:
        if samples > 1 and (one.seed is not None or one.file is not None):
            raise ConfigError(
                f"{one.where}: --num-samples {samples} repeats a line with other seeds and names, but this one has its "
                "own; take seed and file out of it, or write a line for each."
            )
    return [one for one in found for _ in range(samples)]


def _checked_folder(asked: Generate) -> Path:
    from arl2.video.formats import check_place

    for name, value in (("PROMPT", asked.prompts), ("--sheet", asked.sheet), ("--latents", asked.latents)):
        if value:
            raise ConfigError(f"{name} does not go with --prompts-file; leave it out.")
    folder = asked.output
    if folder is None or folder.suffix or folder == Path("-"):
        raise ConfigError("The videos of --prompts-file go to a folder: give --output a name without extension.")
    check_place(folder, "videos", folder=True, added_to=True)
    return folder
