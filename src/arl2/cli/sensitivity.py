"""``arl2 sensitivity MODEL``: rank the layers of a teacher by how much a rollout misses each softmax layer."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from arl2.cli import words
from arl2.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from arl2.training.conversion.students import Teacher


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "sensitivity",
        help="rank the layers of a teacher, to choose which become hybrid",
        description="Put aligned layers (of 'arl2 train align') into the teacher one at a time and measure how far its "
        "rollouts move, noise and prompts being the same.",
    )
    parser.add_argument("model", metavar="MODEL", help="the teacher: shapes, or the folder of a pipeline")
    parser.add_argument("--aligned", required=True, metavar="FOLDER", help="export of 'arl2 train align'")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json", help="ranking and plans")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="a bar a layer")
    parser.add_argument("--count", type=words.whole_from_one, metavar="K", help="suggest a plan of K hybrid layers")
    parser.add_argument("--keep", metavar="LIST", help="layers that stay softmax, such as 0,29")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line (default: captions of the shapes)")
    where.add_argument("--clips", metavar="FOLDER", help="take the prompts of a folder of clips")
    parser.add_argument("--limit", type=words.whole_from_one, default=64, help="prompts to roll out (default: 64)")
    parser.add_argument("--frames", type=words.whole_from_one, metavar="N", help="latent frames (default: two blocks)")
    parser.add_argument("--batch", type=words.whole_from_one, default=4, help="prompts at once (default: 4)")
    parser.add_argument("--seed", type=words.whole_from_zero, default=0, help="of the noise (default: 0)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--threads", type=words.whole_from_one, help="CPU threads")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, write, report."""
    import torch

    from arl2.checkpoints.describe import LATENT_STRIDE
    from arl2.checkpoints.layer_choice import parse_layers
    from arl2.pipeline.devices import checked_device
    from arl2.training.conversion.bar_chart import bar_chart
    from arl2.training.conversion.pictures import RolloutSpec
    from arl2.training.conversion.sensitivity import measure_sensitivity
    from arl2.training.conversion.students import load_teacher

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    console = Console(stderr=True, highlight=False)
    teacher = load_teacher(arguments.model, device=checked_device(arguments.device or "cpu"))
    depth = len(teacher.model.config.layer_plan)
    keep = [] if arguments.keep is None else parse_layers(arguments.keep, depth)
    text = _text(arguments, teacher)
    settings = teacher.settings
    # One block beyond the first, which no memory touches. Later two rollouts differ by what chance made of the first
    # difference, whichever layer it came from.
    block = teacher.model.config.block_frames
    frames = arguments.frames or (settings.first_block_frames or block) + block
    spec = RolloutSpec(
        settings, settings.height // LATENT_STRIDE, settings.width // LATENT_STRIDE, frames, arguments.seed
    )
    found = measure_sensitivity(
        teacher,
        arguments.aligned,
        text.to(teacher.model.patch_embedding.weight.device),
        spec,
        batch=arguments.batch,
        tell=lambda layer, moved: console.print(f"layer {layer}: {moved:.4f}"),
    )
    facts = {"model": arguments.model, "aligned": arguments.aligned, "prompts": len(text), "frames": frames}
    result = {
        **facts,
        "seed": arguments.seed,
        "metric": "norm of the difference of rollout latents over the norm of the teacher's, mean over prompts",
        **found.to_mapping(keep=keep, count=arguments.count),
    }
    _write(arguments.output, json.dumps(result, indent=1) + "\n")
    if arguments.plot is not None:
        chosen = [] if arguments.count is None else [i for i, x in enumerate(result["suggested"]) if x == "H"]
        bars = [(str(layer), found.distances[layer]) for layer in sorted(found.distances)]
        try:
            bar_chart(
                bars,
                title="How far a rollout moves with this layer hybrid (of the teacher's norm)",
                marked=[str(layer) for layer in chosen],
                path=arguments.plot,
            )
        except OSError as error:
            raise ConfigError(f"'{arguments.plot}' cannot be written ({error}); give another place.") from error
    print(f"least sensitive first: {', '.join(map(str, found.ranking))}")
    if arguments.count is not None:
        print(f"suggested plan with {arguments.count} hybrid layers: {result['suggested']}")
    return 0


def _text(arguments: argparse.Namespace, teacher: "Teacher") -> "Tensor":
    """Prompt embeddings of what the options name."""
    from arl2.pipeline.folder import load_text
    from arl2.serving.prompts_file import read_prompts_file
    from arl2.shapes.prompts.text import ShapesText
    from arl2.shapes.training.clip_source import PromptedScenes
    from arl2.training.clips.dataset import ClipSet
    from arl2.training.clips.sources import embed

    if arguments.clips is not None:
        clips = ClipSet.open(arguments.clips)
        return clips.batch(range(min(arguments.limit, len(clips))))[1]
    text = load_text(teacher.folder)
    if arguments.prompts is not None:
        prompts = [request.prompt for request in read_prompts_file(arguments.prompts)][: arguments.limit]
    elif isinstance(text, ShapesText):
        # From a seed that no training uses.
        prompts = [prompt.caption for prompt in PromptedScenes.sample(arguments.limit, seed=2**40 + 4).prompts]
    else:
        raise ConfigError("This model needs prompts of yours: give --prompts FILE or --clips FOLDER.")
    return embed(text, prompts).float()


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written ({error}); give another place.") from error
