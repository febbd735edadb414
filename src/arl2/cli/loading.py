"""From the words of a command to a model on its device."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from arl2.cli import words

if TYPE_CHECKING:
    from arl2.pipeline.pipeline import ARL2Pipeline

EMBEDDED_MODEL = "shapes-75"
DTYPES = ("float32", "bfloat16", "float16")
BRANCHES = ("auto", "ema", "plain")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What says which model, where it runs and in which precision."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        help=f"a name that 'arl2 models' lists, a folder, or a checkpoint (default: the embedded {EMBEDDED_MODEL})",
    )
    group.add_argument("--weights", type=Path, metavar="FILE", help="AR checkpoint (.pt, .safetensors) over the base")
    group.add_argument(
        "--base", type=Path, metavar="FOLDER", help="with text encoder and VAE, such as a copy of Wan 2.1"
    )
    group.add_argument("--config", type=Path, metavar="YAML", help="published config: steps, block size, window")
    group.add_argument(
        "--decoder", metavar="FILE", help="tiny decoder (taew2_1) instead of the VAE; 'tiny' looks for it by its name"
    )
    group.add_argument(
        "--hybrid-layers",
        "--hybrid_layers",
        type=int,
        nargs="+",
        metavar="N",
        help="make these layers hybrid, untrained",
    )
    group.add_argument(
        "--weights-branch", choices=BRANCHES, help="of a file with EMA and plain weights (default: auto)"
    )
    group.add_argument("--dtype", choices=DTYPES, help="to compute in (default: float32)")
    group.add_argument("--device", help="cpu, cuda, cuda:1 (default: cpu)")
    group.add_argument("--height", type=words.whole_from_one, help="of the picture, in pixels (default: the model's)")
    group.add_argument("--width", type=words.whole_from_one, help="likewise")


def load_model(arguments: argparse.Namespace) -> "ARL2Pipeline":
    """The pipeline that the options mean, on its device; errors as for ``open_pipeline``."""
    from arl2.cli.generation import PROMPTS_AT_ONCE
    from arl2.cli.progress import voice
    from arl2.pipeline.options import ModelSource, SamplingOptions
    from arl2.pipeline.source import open_pipeline

    source = ModelSource(
        model=arguments.model,
        weights=arguments.weights,
        base=arguments.base,
        config=arguments.config,
        decoder=arguments.decoder,
        hybrid_layers=tuple(arguments.hybrid_layers or ()),
        weights_branch=arguments.weights_branch,
        dtype=arguments.dtype,
        device=arguments.device,
    )
    given = vars(arguments)  # not every command has all of them
    options = SamplingOptions(
        num_frames=given.get("frames"),
        height=arguments.height,
        width=arguments.width,
        window=given.get("window", "settings"),
    )
    prompts = given.get("prompts") or ()
    batch = 1 if given.get("prompts_file") is not None else max(1, min(len(prompts), PROMPTS_AT_ONCE))
    say = voice(arguments) if "quiet" in given else None
    return open_pipeline(source, options, batch=batch, say=say)


def model_name(arguments: argparse.Namespace) -> str:
    """What the person called the model, as a file's metadata has it."""
    return str(arguments.model or arguments.weights or arguments.base or EMBEDDED_MODEL)
