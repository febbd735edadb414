"""``arl2 generate PROMPT``: prompts to video files, written block by block as they are generated."""

import argparse
import sys
import time
from pathlib import Path

from arl2.cli import words


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "generate",
        help="turn prompts into videos",
        description="Generate a video for each prompt, block by block, in memory that does not grow with its length. "
        "Ctrl-C ends the video after the current block.",
    )
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help='such as "a red circle moves right on navy"')
    parser.add_argument("--model", default="shapes", help="shapes (embedded) or a folder (default: shapes)")
    parser.add_argument("--frames", type=words.whole_from_one, help="video frames (default: the model's, 81 of shapes)")
    parser.add_argument("--seed", type=words.whole_from_zero, default=0, help="of the first prompt (default: 0)")
    parser.add_argument(
        "--steps", type=words.steps, help="denoising steps of a block: a number, or a list such as 1000,750,500,250"
    )
    parser.add_argument(
        "--window",
        type=words.window,
        default="settings",
        help="latent frames that softmax layers see, or full (default: the model's, 21 of shapes)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help=".mp4, .gif, .webp, or a name without extension for a folder of PNGs. Several prompts: a file shows them "
        "side by side, a name without extension is a folder with an .mp4 each. Default: an .mp4 named after the prompt",
    )
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also a picture of moments of all videos")
    parser.add_argument(
        "--scale", type=words.whole_from_one, help="enlarge every pixel (default: 4 for 64-pixel frames, 1 for large)"
    )
    parser.add_argument("--latents", type=Path, metavar="SAFETENSORS", help="also the latents, exactly")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--threads", type=words.whole_from_one, help="CPU threads")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Generate, write, and say what it took; 130 if it was interrupted (what is written is whole)."""
    from arl2.cli.outputs import check_file, plan_outputs

    plan = plan_outputs(arguments.prompts, arguments.output)
    for path, suffix in ((arguments.sheet, ".png"), (arguments.latents, ".safetensors")):
        if path is not None:
            check_file(path, suffix)

    import torch

    from arl2.cli.devices import checked_device
    from arl2.cli.generation import Generation
    from arl2.cli.usage import memory_words
    from arl2.rollout.pipeline import ARL2Pipeline
    from arl2.training.interrupt import StopSignal

    def say(line: str) -> None:
        if not arguments.quiet:
            print(line)

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = checked_device(arguments.device)
    started = time.perf_counter()
    pipe = ARL2Pipeline.from_pretrained(arguments.model)
    if device != "cpu":
        pipe.to(device)
    work = Generation(
        pipe,
        arguments.prompts,
        plan,
        model=arguments.model,
        num_frames=arguments.frames or pipe.settings.num_frames,
        seed=arguments.seed,
        steps=arguments.steps,
        window=arguments.window,
        scale=arguments.scale,
        keep_pictures=arguments.sheet is not None,
        keep_latents=arguments.latents is not None,
    )
    work.check()
    if work.frames.note is not None:
        say(work.frames.note)
    loaded = time.perf_counter()
    with StopSignal() as stop:
        work.run(stop, quiet=arguments.quiet)
    seconds = time.perf_counter() - loaded
    if work.written and arguments.sheet is not None:
        work.write_sheet(arguments.sheet)
    if work.written and arguments.latents is not None:
        work.write_latents(arguments.latents)

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
