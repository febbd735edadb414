"""``arl2 shapes sample | render | score``: look at the shapes world, and score videos of it."""

import argparse
import json
from pathlib import Path

from arl2.cli import words
from arl2.errors import ConfigError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command and its three verbs."""
    parser = commands.add_parser(
        "shapes",
        help="look at the shapes world, and score videos of it",
        description="The shapes world: scenes drawn from a few numbers, captions, and an oracle that reads videos.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in (_add_sample, _add_render, _add_score):
        added = verb(verbs)
        added.add_argument("--seed", type=words.whole_from_zero, default=0, help="of scenes and noise (default: 0)")
        added.add_argument("--threads", type=words.whole_from_one, help="CPU threads")
    parser.set_defaults(run=run)


def _add_sample(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    parser = verbs.add_parser("sample", help="captions of random scenes", description="Print captions of a seed.")
    parser.add_argument("--count", type=words.whole_from_one, default=8, help="scenes (default: 8)")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also a picture of moments of their true videos")
    return parser


def _add_render(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        "render", help="true videos of the world", description="Draw videos by the renderer, without any model."
    )
    parser.add_argument("captions", nargs="*", metavar="CAPTION", help="what to draw, in free words")
    parser.add_argument("--count", type=words.whole_from_one, metavar="N", help="instead: N random scenes")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="a file for each goes here")
    parser.add_argument("--frames", type=words.whole_from_one, default=81, help="video frames (default: 81)")
    parser.add_argument("--format", choices=("mp4", "gif", "webp"), default="mp4", help="of the files (default: mp4)")
    parser.add_argument("--scale", type=words.whole_from_one, default=4, help="enlarge every pixel (default: 4)")
    return parser


def _add_score(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        "score",
        help="let the oracle score a folder of videos, or a model",
        description="Print the share of videos that show what was asked, with 95 % intervals (Wilson). A folder's "
        "prompts come from manifest.jsonl or the files' metadata; a model generates the fixed prompts of the seed.",
    )
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="of .mp4, .gif, .webp or PNG folders")
    parser.add_argument("--model", help="instead of a folder: shapes, or a pipeline's folder")
    parser.add_argument("--prompts", type=words.whole_from_one, default=200, help="of the model (default: 200)")
    parser.add_argument("--frames", type=words.whole_from_one, default=81, help="of each video (default: 81)")
    parser.add_argument("--steps", type=words.steps, help="denoising steps instead of the model's own")
    words.add_candidates(parser)
    parser.add_argument("--window", type=words.window, default="settings", help="latent frames, or full")
    parser.add_argument(
        "--occlusion",
        type=words.whole_from_one,
        metavar="HIDDEN",
        help="also the memory test: continue true clips from behind a wall that hides the object for HIDDEN video "
        "frames or more, the colour not in the caption",
    )
    parser.add_argument(
        "--walls",
        choices=("standing", "moving"),
        default="standing",
        help="of the memory test: standing as in the world (up to about 10 video frames), or moving for any length",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of tables")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run one of the verbs."""
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)
    return {"sample": _sample, "render": _render, "score": _score}[arguments.verb](arguments)


def _sample(arguments: argparse.Namespace) -> int:
    from arl2.shapes.prompts.captions import captions_of
    from arl2.shapes.world.renderer import render
    from arl2.shapes.world.scene import sample_scenes
    from arl2.video.formats import check_file
    from arl2.video.pixels import to_bytes
    from arl2.video.sheet import contact_sheet

    if arguments.sheet is not None:
        check_file(arguments.sheet, ".png")
    scenes = sample_scenes(arguments.count, seed=arguments.seed)
    captions = captions_of(scenes)
    for number, caption in enumerate(captions):
        print(f"{number:3d}  {caption}")
    if arguments.sheet is not None:
        clips = [
            (caption, to_bytes(render(scenes.select([number]), 81)[0, :, ::7]))
            for number, caption in enumerate(captions)
        ]
        contact_sheet(clips, every=1, scale=2, path=arguments.sheet)
        print(f"wrote {arguments.sheet}")
    return 0


def _render(arguments: argparse.Namespace) -> int:
    from arl2.serving.file_names import file_name
    from arl2.serving.manifest import write_listing
    from arl2.shapes.evaluation.render import scenes_of_prompts
    from arl2.shapes.prompts.captions import captions_of
    from arl2.shapes.world.renderer import render
    from arl2.shapes.world.scene import sample_scenes
    from arl2.video.formats import check_writable
    from arl2.video.pixels import to_bytes
    from arl2.video.writers import open_video

    if bool(arguments.captions) == (arguments.count is not None):
        raise ConfigError("Give either captions to render or --count N for random scenes.")
    if arguments.count is None:
        captions, scenes = arguments.captions, scenes_of_prompts(arguments.captions, seed=arguments.seed)
    else:
        scenes = sample_scenes(arguments.count, seed=arguments.seed)
        captions = captions_of(scenes)
    names = [file_name(number, caption, f".{arguments.format}") for number, caption in enumerate(captions)]
    for name in names:
        check_writable(arguments.output / name)
    entries = []
    for number, (name, caption) in enumerate(zip(names, captions, strict=True)):
        facts = {"prompt": caption, "rendered": True, "seed": arguments.seed, "num_frames": arguments.frames}
        with open_video(arguments.output / name, scale=arguments.scale, settings=facts) as writer:
            # A second at a time, so that any length takes the same memory.
            for start in range(0, arguments.frames, 16):
                frames = min(16, arguments.frames - start)
                writer.write(to_bytes(render(scenes.select([number]), frames, start=start)[0]))
        entries.append({"file": name, **facts})
        print(f"{name}  {caption}")
    write_listing(arguments.output, entries)
    print(f"wrote {len(names)} videos and manifest.jsonl to {arguments.output}")
    return 0


def _score(arguments: argparse.Namespace) -> int:
    from arl2.cli.score_report import folder_report, model_report, print_report

    if (arguments.folder is None) == (arguments.model is None):
        raise ConfigError("Give either a folder of videos or --model shapes, and not both.")
    report = folder_report(arguments) if arguments.model is None else model_report(arguments)
    if arguments.json:
        print(json.dumps(report))
    else:
        print_report(report)
    return 0
