"""From a :class:`ModelSource` to a pipeline on its device: found, planned, checked, loaded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from arl2.errors import ConfigError
from arl2.pipeline.assemble import assemble_pipeline, find_recipe
from arl2.pipeline.budget import available_bytes, check_fits
from arl2.pipeline.devices import checked_device
from arl2.pipeline.folder import is_saved_pipeline
from arl2.pipeline.options import ModelSource, SamplingOptions
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.pipeline.planning import plan_recipe
from arl2.pipeline.registry import default_model
from arl2.rollout.settings import GenerationSettings

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TINY_FILES = ("taew2_1.safetensors", "taew2_1.pth")


def open_pipeline(
    source: ModelSource,
    options: SamplingOptions | None = None,
    *,
    batch: int = 1,
    say: Callable[[str], None] | None = None,
) -> ARL2Pipeline:
    """Load a model onto its device, after checking that what is to be sampled will fit.

    Args:
        source: which model, and where it runs.
        options: what will be sampled, as far as memory depends on it; its picture size becomes the pipeline's.
        batch: videos at once.
        say: told one sentence about the memory that published parts will take.

    Raises:
        CheckpointError, ConfigError: a part that is missing, damaged or unknown, or a device that is not there.
        MemoryBudgetError: what is asked for will not fit.
    """
    options = options or SamplingOptions()
    device = checked_device(source.device or "cpu")
    dtype = _DTYPES[source.dtype or "float32"]
    model, weights = _model_and_weights(source)
    _check_memory(source, options, model, weights, dtype, device, batch, say)
    pipe = assemble_pipeline(
        model,
        weights=weights,
        base=source.base,
        config=source.config,
        decoder=_decoder(source),
        hybrid_layers=source.hybrid_layers,
        weights_branch=source.weights_branch or "auto",
        torch_dtype=dtype,
    )
    if device != "cpu":
        pipe.to(device)
    pipe.settings = _sized(pipe.settings, options)
    return pipe


def _check_memory(
    source: ModelSource,
    options: SamplingOptions,
    model: str,
    weights: Path | None,
    dtype: torch.dtype,
    device: str,
    batch: int,
    say: Callable[[str], None] | None,
) -> None:
    if is_saved_pipeline(model):
        return
    recipe = find_recipe(model, weights=weights, base=source.base, config=source.config)
    recipe = replace(recipe, settings=_sized(recipe.settings, options))
    if options.window != "settings":
        recipe = replace(recipe, model={**recipe.model, "window": options.window})
    plan = plan_recipe(
        recipe,
        num_frames=options.num_frames,
        batch=batch,
        dtype=dtype,
        tiny_decoder=source.decoder is not None,
        hybrid_layers=source.hybrid_layers,
        weights_branch=source.weights_branch or "auto",
        device=device,
    )
    if say is not None:
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in plan.parts().items())
        say(f"memory on {device}: about {plan.peak / 1e9:.2f} GB at the most ({parts})")
    check_fits(plan, available_bytes(device), device)


def _sized(settings: GenerationSettings, options: SamplingOptions) -> GenerationSettings:
    return replace(settings, height=options.height or settings.height, width=options.width or settings.width)


def _model_and_weights(source: ModelSource) -> tuple[str, Path | None]:
    """A checkpoint without a model's name goes over the base; without a base, too, it is the model."""
    if source.model is None and source.base is not None:
        return str(source.base), source.weights
    if source.model is None and source.weights is not None:
        return str(source.weights), None
    return str(source.model or default_model()), source.weights


def _decoder(source: ModelSource) -> Path | None:
    if source.decoder is None:
        return None
    given = Path(source.decoder)
    if source.decoder != "tiny" or given.exists():
        return given
    folders = [folder for folder in (source.base, Path(source.model or ""), Path()) if folder is not None]
    places = [folder / name for folder in folders for name in _TINY_FILES]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(
        f"No tiny decoder found: looked for {' and '.join(_TINY_FILES)} in the base folder and the working folder; "
        "give its path with --decoder FILE."
    )
