"""From the words of a command to a model on its device."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from arl2.cli import words
from arl2.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from arl2.pipeline.pipeline import ARL2Pipeline
    from arl2.rollout.settings import GenerationSettings

EMBEDDED_MODEL = "shapes-75"
DTYPES = ("float32", "bfloat16", "float16")
BRANCHES = ("auto", "ema", "plain")
TINY = "tiny"
_TINY_FILES = ("taew2_1.safetensors", "taew2_1.pth")


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
    """The pipeline that the options mean, on its device.

    Raises:
        CheckpointError, ConfigError: a part that is missing, damaged or unknown, or a device that is not there.
    """
    import torch

    from arl2.pipeline.devices import checked_device
    from arl2.pipeline.folder import EMBEDDED, GENERATION
    from arl2.pipeline.pipeline import ARL2Pipeline

    device = checked_device(arguments.device or "cpu")
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
        arguments.dtype or DTYPES[0]
    ]
    model, weights = _model_and_weights(arguments)
    parts = (arguments.weights, arguments.base, arguments.config, arguments.decoder, arguments.hybrid_layers)
    whole = model in EMBEDDED or (Path(model) / GENERATION).is_file()
    if whole and all(part is None for part in (*parts, arguments.weights_branch)):
        pipe = ARL2Pipeline.from_pretrained(model, torch_dtype=dtype)
    else:
        # Only published parts need the rooms behind this.
        from arl2.pipeline.assemble import assemble_pipeline

        check_memory(arguments, model, weights, dtype, device)
        pipe = assemble_pipeline(
            model,
            weights=weights,
            base=arguments.base,
            config=arguments.config,
            decoder=_decoder(arguments),
            hybrid_layers=arguments.hybrid_layers,
            weights_branch=arguments.weights_branch or BRANCHES[0],
            torch_dtype=dtype,
        )
    if device != "cpu":
        pipe.to(device)
    pipe.settings = _sized(pipe.settings, arguments)
    return pipe


def check_memory(
    arguments: argparse.Namespace, model: str, weights: Path | None, dtype: "torch.dtype", device: str
) -> None:
    """Say what published parts will take of the device, and refuse what cannot fit before anything is loaded."""
    from arl2.cli.progress import voice
    from arl2.pipeline.assemble import find_recipe
    from arl2.pipeline.budget import available_bytes, check_fits
    from arl2.pipeline.folder import is_saved_pipeline
    from arl2.pipeline.planning import plan_recipe
    from arl2.serving.generation import PROMPTS_AT_ONCE

    if is_saved_pipeline(model):
        return
    recipe = find_recipe(model, weights=weights, base=arguments.base, config=arguments.config)
    recipe = replace(recipe, settings=_sized(recipe.settings, arguments))
    if arguments.window != "settings":
        recipe = replace(recipe, model={**recipe.model, "window": arguments.window})
    plan = plan_recipe(
        recipe,
        num_frames=arguments.frames,
        batch=1 if arguments.prompts_file is not None else min(len(arguments.prompts), PROMPTS_AT_ONCE),
        dtype=dtype,
        tiny_decoder=arguments.decoder is not None,
        hybrid_layers=arguments.hybrid_layers,
        weights_branch=arguments.weights_branch or BRANCHES[0],
        device=device,
    )
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in plan.parts().items())
    voice(arguments)(f"memory on {device}: about {plan.peak / 1e9:.2f} GB at the most ({parts})")
    check_fits(plan, available_bytes(device), device)


def _sized(settings: "GenerationSettings", arguments: argparse.Namespace) -> "GenerationSettings":
    return replace(settings, height=arguments.height or settings.height, width=arguments.width or settings.width)


def model_name(arguments: argparse.Namespace) -> str:
    """What the person called the model, as a file's metadata has it."""
    return str(arguments.model or arguments.weights or arguments.base or EMBEDDED_MODEL)


def _model_and_weights(arguments: argparse.Namespace) -> tuple[str, Path | None]:
    """A checkpoint without a model's name goes over the base; without a base, too, it is the model."""
    if arguments.model is None and arguments.base is not None:
        return str(arguments.base), arguments.weights
    if arguments.model is None and arguments.weights is not None:
        return str(arguments.weights), None
    return str(arguments.model or EMBEDDED_MODEL), arguments.weights


def _decoder(arguments: argparse.Namespace) -> Path | None:
    if arguments.decoder is None:
        return None
    given = Path(arguments.decoder)
    if arguments.decoder != TINY or given.exists():
        return given
    folders = [folder for folder in (arguments.base, Path(arguments.model or ""), Path()) if folder is not None]
    places = [folder / name for folder in folders for name in _TINY_FILES]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(
        f"No tiny decoder was found: looked for {' and '.join(_TINY_FILES)} in the base's folder and the working "
        "folder; give its path with --decoder FILE."
    )
