"""``arl2 rollouts``: clips to train on, from a teacher, from true scenes or from videos, into shards."""

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arl2.cli.checks import exclusive
from arl2.cli.loading import load_pipeline
from arl2.cli.options import Command
from arl2.cli.progress import Reporting
from arl2.cli.standard_streams import say_error
from arl2.cli.usage import LiveProgress, memory_words
from arl2.errors import ConfigError
from arl2.files.places import check_place
from arl2.pipeline.options import ModelSource, SamplingOptions

if TYPE_CHECKING:
    from arl2.pipeline.pipeline import ARL2Pipeline
    from arl2.training.clips.sources import ClipSource, Prompt

_WAN_TEMPORAL_FACTOR = 4  # to say beforehand what memory is needed; the codec itself is asked later

# Sampling options that clips record by other names, or that follow from the model and its settings.
_FACTS = ("num_frames", "height", "width", "seed", "steps", "window")


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """With --shapes-prompts.

    Attributes:
        no_colour: Share of captions without a colour, 0 to 1 (default: 0.15).
        hiding: Scenes with an occluder that hides the object; captions without a colour.
        known_blocks: Number of true blocks that clips begin with; the model continues them.
        real: Encode the true clips, without a model.
    """

    no_colour: float | None = None
    hiding: bool = False
    known_blocks: int | None = None
    real: bool = False


@dataclass(frozen=True, kw_only=True)
class Rollouts(Command):
    """Make clips to train on: a teacher's rollouts, or encoded videos.

    Writes clips (latents, prompt embeddings, caption) into shards that ``arl2 train align`` and ``arl2 train distill``
    read. Re-run the command to resume: complete shards are kept. Under torchrun
    (torchrun --nproc-per-node N -m arl2.cli.main rollouts ...) processes share the shards.

    Attributes:
        output: Folder of the clips.
        prompts_file: Prompts, one a line (.txt) or as objects (.jsonl).
        shapes_prompts: Number of scenes of the shapes world whose captions are the prompts.
        videos: Folder of videos with captions (a .txt beside each, captions.csv or captions.jsonl), to encode.
        clips_per_video: Clips cut from a video at the most, with --videos (default: 1).
        latent_frames: Length of a clip in latent frames, instead of --frames.
        batch: Clips sampled at once.
        shard_clips: Clips in a shard.
        threads: CPU threads (default: 1 for small models, else all cores).
        quiet: Print nothing but errors.
    """

    positional: ClassVar = ("model",)
    examples: ClassVar = (
        "arl2 rollouts mine --prompts-file prompts.txt --latent-frames 21 -o runs/clips",
        "arl2 rollouts shapes-teacher --shapes-prompts 2048 --real --latent-frames 27 --seed 1 -o runs/clips",
    )
    output: Path
    prompts_file: Path | None = None
    shapes_prompts: int | None = None
    videos: Path | None = None
    clips_per_video: int | None = None
    latent_frames: int | None = None
    batch: int = 8
    shard_clips: int = 64
    threads: int | None = None
    quiet: bool = False
    scenes: Scenes = field(default_factory=Scenes)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    source: ModelSource = field(default_factory=ModelSource)

    def __post_init__(self) -> None:
        sources = {
            "--prompts-file": self.prompts_file,
            "--shapes-prompts": self.shapes_prompts is not None,
            "--videos": self.videos,
        }
        exclusive(sources, required=True)
        exclusive({"--frames": self.sampling.num_frames, "--latent-frames": self.latent_frames})

    def run(self) -> int:
        """Make what is missing, and say what it took; 130 if it was interrupted."""
        _check(self)
        return _run(self, None if self.prompts_file is None else _prompts_of_file(self))


def _run(asked: Rollouts, prompts: "list[Prompt] | None") -> int:
    from arl2.serving.manifest import model_hash
    from arl2.training.clips.folder import ClipIndex, require_datasets
    from arl2.training.clips.origin import origin_facts
    from arl2.training.clips.sources import write_clips
    from arl2.training.clips.writing import ClipWriter

    require_datasets()
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    say = Reporting(quiet=asked.quiet or rank > 0).voice()
    pipe = load_pipeline(*_for_loading(asked, processes), threads=asked.threads, batch=asked.batch, say=say)
    pipe.set_progress_bar_config(disable=True)
    latent_frames, note = _latent_frames(pipe, asked)
    if note is not None:
        say(note)
    source, facts = _source(pipe, asked, prompts, latent_frames, say)
    settings = pipe.settings
    factor = pipe.codec.spatial_factor
    index = ClipIndex(
        clips=len(source),
        shard_clips=asked.shard_clips,
        latents=(pipe.codec.latent_channels, latent_frames, settings.height // factor, settings.width // factor),
        text_width=pipe.text.width,
        facts={
            **facts,
            "model_hash": model_hash(pipe),
            **origin_facts(pipe),
            "codec": type(pipe.codec).__name__,
            "block_frames": pipe.block_frames,
            "first_block_frames": settings.first_block_frames,
            "fps": settings.fps,
            "dtype": str(pipe.transformer.compute_dtype).removeprefix("torch."),
        },
        about=f"{facts['source']} of {asked.source.name}",
    )
    writer = ClipWriter(asked.output, index)
    missing = writer.missing()
    mine = [shard for shard in missing if shard % processes == rank]
    clips = sum(len(index.clips_of(shard)) for shard in mine)
    shared = f", {len(mine)} of them by this process" if processes > 1 else ""
    say(f"{index.clips} clips in {index.shards} shards: {len(missing)} to make{shared}")
    started = time.perf_counter()

    def shown(done: float) -> None:
        minutes = max(time.perf_counter() - started, 1e-9) / 60
        live.show(done, f"{done / minutes:.1f} clips/min  {memory_words()}", description=f"clip {done:.1f} of {clips}")

    def told(shard: int) -> None:
        say(f"shard {shard} is whole ({time.perf_counter() - started:.0f} s)")

    try:
        with LiveProgress("clip", max(clips, 1), quiet=asked.quiet or rank > 0) as live:
            write_clips(writer, source, rank=rank, processes=processes, on_progress=shown, on_shard=told)
    except KeyboardInterrupt:
        whole = index.shards - len(writer.missing())
        say_error(
            f"arl2 rollouts: interrupted; {whole} of {index.shards} shards are whole in '{asked.output}'. Re-run the "
            "command to resume.",
        )
        return 130
    seconds = time.perf_counter() - started
    left = len(writer.missing())
    end = "all are whole" if not left else f"{left} shards are left to other processes"
    say(f"{clips} clips in {seconds:.1f} s into {asked.output}; {end}; peak memory {memory_words()}")
    return 0


def _check(asked: Rollouts) -> None:
    scenes, sampling = asked.scenes, asked.sampling
    given = [name for name, value in vars(scenes).items() if value]
    if given and asked.shapes_prompts is None:
        raise ConfigError(f"--{given[0].replace('_', '-')} goes with --shapes-prompts; leave it out.")
    if scenes.real and scenes.known_blocks is not None:
        raise ConfigError("--real clips are true from start to end; leave --known-blocks out.")
    if scenes.hiding and scenes.no_colour is not None:
        raise ConfigError("The captions of --hiding all leave the colour out; leave --no-colour out.")
    sampled = sampling.steps is not None or sampling.first_block_candidates is not None or sampling.window != "settings"
    if sampled and (scenes.real or asked.videos is not None):
        raise ConfigError("Real clips are encoded, not sampled; leave --steps, --candidates and --window out.")
    if asked.clips_per_video is not None and asked.videos is None:
        raise ConfigError("--clips-per-video goes with --videos; leave it out.")
    check_place(asked.output, "clips", folder=True, added_to=True)


def _seed(asked: Rollouts) -> int:
    return int(asked.sampling.seed or 0)  # type: ignore[arg-type]  # the command line gives one


def _prompts_of_file(asked: Rollouts) -> "list[Prompt]":
    from arl2.serving.prompts_file import read_prompts_file
    from arl2.training.clips.sources import Prompt

    assert asked.prompts_file is not None
    found = read_prompts_file(asked.prompts_file)
    for one in found:
        for name, value in (("frames", one.frames), ("file", one.file), ("image", one.image), ("video", one.video)):
            if value is not None:
                raise ConfigError(f"{one.where}: '{name}' means nothing for rollouts, all of one length; take it out.")
    return [Prompt(one.prompt, _seed(asked) + i if one.seed is None else one.seed) for i, one in enumerate(found)]


def _for_loading(asked: Rollouts, processes: int) -> tuple[ModelSource, SamplingOptions]:
    """The model with GPUs each process on one of its own, and how long its clips are."""
    import torch

    from arl2.geometry import video_frames_of

    source, sampling = asked.source, asked.sampling
    if asked.latent_frames is not None:
        sampling = replace(sampling, num_frames=video_frames_of(0, asked.latent_frames, _WAN_TEMPORAL_FACTOR))
    if processes > 1 and torch.cuda.is_available() and source.device in ("auto", "cuda"):
        source = replace(source, device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return source, sampling


def _latent_frames(pipe: "ARL2Pipeline", asked: Rollouts) -> tuple[int, str | None]:
    """Of every clip, and a sentence where they are not what was asked."""
    from arl2.geometry import split_blocks

    if asked.latent_frames is not None:
        split_blocks(asked.latent_frames, pipe.block_frames, pipe.settings.first_block_frames)
        return asked.latent_frames, None
    plan = pipe.plan_frames(asked.sampling.num_frames or pipe.settings.num_frames)
    if plan.requested == plan.video_frames:
        return plan.latent_frames, None
    return plan.latent_frames, (
        f"{plan.requested} video frames do not fill whole blocks; clips have {plan.video_frames} ({plan.latent_frames} "
        "latent frames)."
    )


def _source(
    pipe: "ARL2Pipeline", asked: Rollouts, prompts: "list[Prompt] | None", latent_frames: int, say: Any
) -> "tuple[ClipSource, dict[str, Any]]":
    """What makes the clips, and what of it a folder must have in common to be gone on with."""
    from arl2.shapes.training.clip_source import DEFAULT_NO_COLOUR, PromptedScenes, SceneClips, SceneOpenings
    from arl2.training.clips.sources import TeacherClips, fingerprint

    if asked.videos is not None:
        return _videos(pipe, asked, latent_frames, say)
    scenes = openings = None
    facts: dict[str, Any] = {"seed": _seed(asked), "steps": asked.sampling.steps, "window": asked.sampling.window}
    if asked.shapes_prompts is not None:
        no_colour = DEFAULT_NO_COLOUR if asked.scenes.no_colour is None else asked.scenes.no_colour
        scenes = PromptedScenes.sample(
            asked.shapes_prompts, seed=_seed(asked), no_colour=no_colour, hiding=asked.scenes.hiding
        )
        facts |= {"hiding": asked.scenes.hiding, "known_blocks": asked.scenes.known_blocks or 0}
        if asked.scenes.known_blocks is not None:
            openings = SceneOpenings.of_blocks(pipe, scenes, asked.scenes.known_blocks, clip_frames=latent_frames)
        prompts = list(scenes.prompts)
    assert prompts is not None
    facts |= {"prompts": fingerprint(prompts)}
    if scenes is not None and asked.scenes.real:
        source: ClipSource = SceneClips(pipe, scenes, latent_frames=latent_frames, batch=asked.batch)
        return source, {**facts, "source": "true scenes"}
    source = TeacherClips(
        pipe,
        prompts,
        latent_frames=latent_frames,
        batch=asked.batch,
        sampling=asked.sampling,
        openings=openings,
    )
    # Options of the first versions stand above; others are there where they were given.
    given = {name: value for name, value in vars(asked.sampling).items() if value is not None and name not in _FACTS}
    if (candidates := given.pop("first_block_candidates", None)) is not None:
        facts["candidates"] = candidates
    facts |= {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return source, {**facts, "source": "rollouts"}


def _videos(pipe: "ARL2Pipeline", asked: Rollouts, latent_frames: int, say: Any) -> "tuple[ClipSource, dict[str, Any]]":
    from arl2.training.clips.videos import VideoClips, plan_videos, read_captioned, videos_fingerprint

    assert asked.videos is not None
    videos = read_captioned(asked.videos)
    most = asked.clips_per_video or 1
    with LiveProgress("video", len(videos), quiet=asked.quiet) as live:
        counts, short = plan_videos(
            videos,
            asked.output,
            video_frames=pipe.codec.frames_of(0, latent_frames),
            fps=pipe.settings.fps,
            most=most,
            on_video=live.show,
        )
    if short:
        say(f"{len(short)} of {len(videos)} videos are too short and left out, first '{short[0]}'")
    facts = {"source": "videos", "videos": videos_fingerprint(videos), "clips_per_video": most}
    return VideoClips(pipe, videos, counts, latent_frames=latent_frames), facts
