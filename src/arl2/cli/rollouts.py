"""``arl2 rollouts``: clips to train on, from a teacher, from true scenes or from videos, into shards."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arl2.cli import words
from arl2.cli.loading import DTYPES, add_model_options
from arl2.errors import ConfigError

if TYPE_CHECKING:
    from arl2.pipeline.pipeline import ARL2Pipeline
    from arl2.training.clips.sources import ClipSource, Prompt

_WAN_TEMPORAL_FACTOR = 4  # to say beforehand what memory is needed; the codec itself is asked later
_OF_SCENES = ("hiding", "known_blocks", "real", "no_colour")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "rollouts",
        help="make clips to train on: a teacher's rollouts, or encoded videos",
        description="Write clips (latents, prompt embeddings, caption) into shards that 'arl2 train align' and 'arl2 "
        "train distill' read. A stopped run goes on with the same words; whole shards are kept. Under torchrun "
        "(torchrun --nproc-per-node N -m arl2.cli.main rollouts ...) processes share the shards.",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="of the clips")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prompts", dest="prompts_file", type=Path, metavar="FILE", help=".txt or .jsonl, a prompt a line"
    )
    source.add_argument("--shapes-prompts", type=int, metavar="N", help="captions of N scenes of the shapes world")
    source.add_argument(
        "--videos",
        type=Path,
        metavar="FOLDER",
        help="real clips: videos with captions (.txt beside each, captions.csv or captions.jsonl)",
    )
    parser.add_argument("--seed", type=words.whole_from_zero, default=0, help="of the first clip (default: 0)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--frames", type=words.whole_from_one, help="video frames a clip (default: the model's)")
    length.add_argument("--latent-frames", type=words.whole_from_one, metavar="N", help="the same in latent frames")
    parser.add_argument("--batch", type=words.whole_from_one, default=8, help="clips made at once (default: 8)")
    parser.add_argument(
        "--shard-clips", type=words.whole_from_one, default=64, metavar="K", help="clips a shard (default: 64)"
    )
    parser.add_argument("--steps", type=words.steps, help="denoising steps of a block, instead of the model's own")
    words.add_candidates(parser)
    parser.add_argument("--window", type=words.window, default="settings", help="latent frames seen, or full")
    parser.add_argument("--threads", type=words.whole_from_one, help="CPU threads")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    scenes = parser.add_argument_group("with --shapes-prompts")
    scenes.add_argument("--no-colour", type=float, metavar="SHARE", help="of captions without colour (default: 0.15)")
    scenes.add_argument("--hiding", action="store_true", help="scenes that hide their object; captions without colour")
    scenes.add_argument(
        "--known-blocks",
        type=words.whole_from_one,
        metavar="K",
        help="begin with K true blocks, which the model goes on with",
    )
    scenes.add_argument("--real", action="store_true", help="no model: the true clips, encoded")
    videos = parser.add_argument_group("with --videos")
    videos.add_argument(
        "--clips-per-video", type=words.whole_from_one, metavar="K", help="cut from a video at the most (default: 1)"
    )
    add_model_options(parser)
    parser.set_defaults(run=run, prompts=(), json_progress=False)


def run(arguments: argparse.Namespace) -> int:
    """Make what is missing, and say what it took; 130 if it was interrupted."""
    _check_words(arguments)
    prompts = None if arguments.prompts_file is None else _prompts_of_file(arguments)

    import torch

    from arl2.cli.loading import load_model, model_name
    from arl2.cli.progress import voice
    from arl2.cli.usage import LiveProgress, memory_words
    from arl2.serving.manifest import model_hash
    from arl2.training.clips.folder import ClipIndex, require_datasets
    from arl2.training.clips.origin import origin_facts
    from arl2.training.clips.sources import write_clips
    from arl2.training.clips.writing import ClipWriter

    require_datasets()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    say = voice(arguments) if rank == 0 else (lambda line: None)
    pipe = load_model(_for_loading(arguments, processes))
    pipe.set_progress_bar_config(disable=True)
    latent_frames, note = _latent_frames(pipe, arguments)
    if note is not None:
        say(note)
    source, facts = _source(pipe, arguments, prompts, latent_frames, say)
    settings = pipe.settings
    factor = pipe.codec.spatial_factor
    index = ClipIndex(
        clips=len(source),
        shard_clips=arguments.shard_clips,
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
            "dtype": arguments.dtype or DTYPES[0],
        },
        about=f"{facts['source']} of {model_name(arguments)}",
    )
    writer = ClipWriter(arguments.output, index)
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
        with LiveProgress("clip", max(clips, 1), quiet=arguments.quiet or rank > 0) as live:
            write_clips(writer, source, rank=rank, processes=processes, on_progress=shown, on_shard=told)
    except KeyboardInterrupt:
        whole = index.shards - len(writer.missing())
        print(
            f"arl2 rollouts: interrupted; {whole} of {index.shards} shards are whole in '{arguments.output}'. The same "
            "words go on with the rest.",
            file=sys.stderr,
        )
        return 130
    seconds = time.perf_counter() - started
    left = len(writer.missing())
    end = "all are whole" if not left else f"{left} shards are left to other processes"
    say(f"{clips} clips in {seconds:.1f} s into {arguments.output}; {end}; peak memory {memory_words()}")
    return 0


def _check_words(arguments: argparse.Namespace) -> None:
    given = [name for name in _OF_SCENES if getattr(arguments, name)]
    if given and arguments.shapes_prompts is None:
        raise ConfigError(f"--{given[0].replace('_', '-')} goes with --shapes-prompts; leave it out.")
    if arguments.real and arguments.known_blocks is not None:
        raise ConfigError("--real clips are true from start to end; leave --known-blocks out.")
    if arguments.hiding and arguments.no_colour is not None:
        raise ConfigError("The captions of --hiding all leave the colour out; leave --no-colour out.")
    sampled = arguments.steps is not None or arguments.candidates is not None or arguments.window != "settings"
    if sampled and (arguments.real or arguments.videos is not None):
        raise ConfigError("Real clips are encoded, not sampled; leave --steps, --candidates and --window out.")
    if arguments.clips_per_video is not None and arguments.videos is None:
        raise ConfigError("--clips-per-video goes with --videos; leave it out.")
    if arguments.output.exists() and not arguments.output.is_dir():
        raise ConfigError(f"'{arguments.output}' is a file, but a folder is to be written; choose another name.")


def _prompts_of_file(arguments: argparse.Namespace) -> "list[Prompt]":
    from arl2.serving.prompts_file import read_prompts_file
    from arl2.training.clips.sources import Prompt

    found = read_prompts_file(arguments.prompts_file)
    for one in found:
        for name, value in (("frames", one.frames), ("file", one.file), ("image", one.image), ("video", one.video)):
            if value is not None:
                raise ConfigError(f"{one.where}: '{name}' means nothing for rollouts, all of one length; take it out.")
    return [
        Prompt(one.prompt, arguments.seed + number if one.seed is None else one.seed)
        for number, one in enumerate(found)
    ]


def _for_loading(arguments: argparse.Namespace, processes: int) -> argparse.Namespace:
    """The words as ``load_model`` reads them: so many prompts at once; with GPUs, each process on one of its own."""
    import torch

    from arl2.geometry import video_frames_of

    frames = arguments.frames
    if arguments.latent_frames is not None:
        frames = video_frames_of(0, arguments.latent_frames, _WAN_TEMPORAL_FACTOR)
    device = arguments.device
    if processes > 1 and torch.cuda.is_available() and device in (None, "cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    changed = {"prompts": [""] * arguments.batch, "prompts_file": None, "frames": frames, "device": device}
    return argparse.Namespace(**{**vars(arguments), **changed})


def _latent_frames(pipe: "ARL2Pipeline", arguments: argparse.Namespace) -> tuple[int, str | None]:
    """Of every clip, and a sentence where they are not what was asked."""
    from arl2.geometry import split_blocks

    if arguments.latent_frames is not None:
        split_blocks(arguments.latent_frames, pipe.block_frames, pipe.settings.first_block_frames)
        return arguments.latent_frames, None
    plan = pipe.plan_frames(arguments.frames or pipe.settings.num_frames)
    if plan.asked == plan.video_frames:
        return plan.latent_frames, None
    return plan.latent_frames, (
        f"{plan.asked} video frames do not fill whole blocks; clips have {plan.video_frames} ({plan.latent_frames} "
        "latent frames)."
    )


def _source(
    pipe: "ARL2Pipeline", arguments: argparse.Namespace, prompts: "list[Prompt] | None", latent_frames: int, say: Any
) -> "tuple[ClipSource, dict[str, Any]]":
    """What makes the clips, and what of it a folder must have in common to be gone on with."""
    from arl2.shapes.training.clip_source import DEFAULT_NO_COLOUR, PromptedScenes, SceneClips, SceneOpenings
    from arl2.training.clips.sources import TeacherClips, fingerprint

    if arguments.videos is not None:
        return _videos(pipe, arguments, latent_frames, say)
    scenes = openings = None
    facts: dict[str, Any] = {"seed": arguments.seed, "steps": arguments.steps, "window": arguments.window}
    if arguments.shapes_prompts is not None:
        no_colour = DEFAULT_NO_COLOUR if arguments.no_colour is None else arguments.no_colour
        scenes = PromptedScenes.sample(
            arguments.shapes_prompts, seed=arguments.seed, no_colour=no_colour, hiding=arguments.hiding
        )
        facts |= {"hiding": arguments.hiding, "known_blocks": arguments.known_blocks or 0}
        if arguments.known_blocks is not None:
            openings = SceneOpenings.of_blocks(pipe, scenes, arguments.known_blocks, clip_frames=latent_frames)
        prompts = list(scenes.prompts)
    assert prompts is not None
    facts |= {"prompts": fingerprint(prompts)}
    if scenes is not None and arguments.real:
        source: ClipSource = SceneClips(pipe, scenes, latent_frames=latent_frames, batch=arguments.batch)
        return source, {**facts, "source": "true scenes"}
    source = TeacherClips(
        pipe,
        prompts,
        latent_frames=latent_frames,
        batch=arguments.batch,
        steps=arguments.steps,
        first_block_candidates=arguments.candidates,
        window=arguments.window,
        openings=openings,
    )
    if arguments.candidates is not None:
        facts["candidates"] = arguments.candidates
    return source, {**facts, "source": "rollouts"}


def _videos(
    pipe: "ARL2Pipeline", arguments: argparse.Namespace, latent_frames: int, say: Any
) -> "tuple[ClipSource, dict[str, Any]]":
    from arl2.cli.usage import LiveProgress
    from arl2.training.clips.videos import VideoClips, plan_videos, read_captioned, videos_fingerprint

    videos = read_captioned(arguments.videos)
    most = arguments.clips_per_video or 1
    with LiveProgress("video", len(videos), quiet=arguments.quiet) as live:
        counts, short = plan_videos(
            videos,
            arguments.output,
            video_frames=pipe.codec.frames_of(0, latent_frames),
            fps=pipe.settings.fps,
            most=most,
            on_video=live.show,
        )
    if short:
        say(f"{len(short)} of {len(videos)} videos are too short and left out, first '{short[0]}'")
    facts = {"source": "videos", "videos": videos_fingerprint(videos), "clips_per_video": most}
    return VideoClips(pipe, videos, counts, latent_frames=latent_frames), facts
