"""``arl2 generate PROMPT``: prompts to video files, written block by block as they are generated."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from arl2.cli import reference, words
from arl2.cli.loading import add_model_options
from arl2.errors import ConfigError

if TYPE_CHECKING:
    from arl2.pipeline.conditioning import VideoPrefix
    from arl2.pipeline.pipeline import ARL2Pipeline


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "generate",
        help="turn prompts into videos",
        description="Generate a video for each prompt, block by block, in memory that does not grow with its length. "
        "Ctrl-C ends the video after the current block.",
        epilog="The published code's words work, too: --config-path, --checkpoint-path, --data-path, --output-folder, "
        "--num-output-frames (latent frames), --use-ema, --i2v, --num-samples, --extended-prompt-path.",
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help='such as "a red circle moves right on navy"')
    parser.add_argument(
        "--prompts-file",
        type=Path,
        metavar="FILE",
        help=".txt with a prompt a line, or .jsonl with objects of prompt and, where wanted, seed, frames, file, "
        "image, video. The output is a folder; what is finished in it is skipped, so the same words go on after a cut",
    )
    parser.add_argument("--frames", type=words.whole_from_one, help="video frames (default: the model's, 81 of shapes)")
    parser.add_argument("--seed", type=words.whole_from_zero, default=0, help="of the first prompt (default: 0)")
    parser.add_argument(
        "--steps", type=words.steps, help="denoising steps of a block: a number, or a list such as 1000,750,500,250"
    )
    words.add_candidates(parser)
    parser.add_argument(
        "--window",
        type=words.window,
        default="settings",
        help="latent frames that softmax layers see, or full (default: the model's, 21 of shapes)",
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--image", type=Path, metavar="PATH", help="start from an image (models whose first block is one frame)"
    )
    start.add_argument(
        "--extend", type=Path, metavar="PATH", help="go on with a video; --frames counts its frames, too"
    )
    parser.add_argument(
        "--only-new", action="store_true", help="leave the image or the extended video out of the output"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help=".mp4, .gif, .webp, .y4m (raw), - (raw y4m to standard output), or a name without extension for a folder "
        "of PNGs. Several prompts: a file shows them side by side, a name without extension is a folder with an .mp4 "
        "each. Default: an .mp4 named after the prompt",
    )
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also a picture of moments of all videos")
    parser.add_argument(
        "--scale", type=words.whole_from_one, help="enlarge every pixel (default: 4 for 64-pixel frames, 1 for large)"
    )
    parser.add_argument("--latents", type=Path, metavar="SAFETENSORS", help="also the latents, exactly")
    parser.add_argument("--threads", type=words.whole_from_one, help="CPU threads")
    said = parser.add_mutually_exclusive_group()
    said.add_argument("--quiet", action="store_true", help="print nothing but errors")
    said.add_argument("--json-progress", action="store_true", help="print JSON objects, one a line, on standard error")
    add_model_options(parser)
    reference.add_words(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Generate, write, and say what it took; 130 if it was interrupted (what is written is whole)."""
    if reference.is_asked(arguments):
        from arl2.cli.progress import voice

        arguments, notes = reference.translated(arguments)
        for note in notes:
            voice(arguments)(note)
    if arguments.prompts_file is not None:
        from arl2.cli.jobs import run_prompts_file

        return run_prompts_file(arguments)
    if not arguments.prompts:
        raise ConfigError("Give a prompt, or several, or --prompts-file FILE.")
    if arguments.only_new and arguments.image is None and arguments.extend is None:
        raise ConfigError("--only-new goes with --image or --extend: without them all frames are new.")
    return _run_prompts(arguments)


def _run_prompts(arguments: argparse.Namespace) -> int:
    from arl2.serving.file_names import plan_outputs
    from arl2.video.formats import check_file

    plan = plan_outputs(arguments.prompts, arguments.output, seed=arguments.seed)
    for path, suffix in ((arguments.sheet, ".png"), (arguments.latents, ".safetensors")):
        if path is not None:
            check_file(path, suffix)

    import torch

    from arl2.cli.loading import load_model, model_name
    from arl2.cli.progress import Summary, progress_of, voice
    from arl2.cli.usage import memory_words
    from arl2.interrupt import StopSignal
    from arl2.pipeline.conditioning import check_not_source, frames_in_all
    from arl2.serving.generation import Generation

    for output in plan.outputs:
        check_not_source(output.path, arguments.image or arguments.extend)
    say = voice(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    pipe = load_model(arguments)
    known = _known(pipe, arguments)
    work = Generation(
        pipe,
        arguments.prompts,
        plan,
        model=model_name(arguments),
        num_frames=arguments.frames or frames_in_all(pipe, known if arguments.extend is not None else None),
        seed=arguments.seed,
        steps=arguments.steps,
        first_block_candidates=arguments.candidates,
        window=arguments.window,
        scale=arguments.scale,
        known=known,
        only_new=arguments.only_new,
        keep_pictures=arguments.sheet is not None,
        keep_latents=arguments.latents is not None,
    )
    work.check()
    if work.frames.note is not None:
        say(work.frames.note)
    if known is not None and arguments.extend is not None:
        cut = f" ({known.left_out} at its start do not fill a block and are left out)" if known.left_out else ""
        say(f"going on after {known.video_frames} video frames of {arguments.extend}{cut}")
    loaded = time.perf_counter()
    with StopSignal() as stop, progress_of(arguments) as progress:
        work.run(stop, progress)
        seconds = time.perf_counter() - loaded
        if work.written and arguments.sheet is not None:
            work.write_sheet(arguments.sheet)
        if work.written and arguments.latents is not None:
            work.write_latents(arguments.latents)
        progress.done(
            Summary(files=work.written, video_frames=work.video_frames, seconds=seconds, interrupted=stop.asked)
        )

    where = ", ".join(str(path) for path in work.places())
    if stop.asked:
        done = f"what was done until then is whole in {where}" if work.written else "nothing was done yet"
        print(f"arl2 generate: interrupted; {done}", file=sys.stderr)
        return 130
    say(f"wrote {where}")
    say(
        f"{work.video_frames} video frames in {seconds:.2f} s, written: {work.video_frames / seconds:.0f} a second; "
        f"peak memory {memory_words()}; the model loaded in {loaded - started:.2f} s"
    )
    return 0


def _known(pipe: "ARL2Pipeline", arguments: argparse.Namespace) -> "VideoPrefix | None":
    from arl2.pipeline.conditioning import image_prefix, video_prefix

    if arguments.image is not None:
        return image_prefix(pipe, arguments.image)
    return None if arguments.extend is None else video_prefix(pipe, arguments.extend)
