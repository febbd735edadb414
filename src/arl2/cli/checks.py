"""What commands check before any work: options that exclude each other, files that are not there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arl2.errors import ConfigError
from arl2.pipeline.options import ModelSource, SamplingOptions
from arl2.pipeline.registry import require_model as require_named_model


def exclusive(given: Mapping[str, Any], *, required: bool = False) -> None:
    """Refuse two options of one choice; or none, where one is ``required``.

    Raises:
        ConfigError: As said.
    """
    names = [name for name, value in given.items() if value not in (None, False, ())]
    if len(names) > 1:
        raise ConfigError(f"{' and '.join(names)} exclude each other; give one of them.")
    if required and not names:
        *others, last = given
        raise ConfigError(f"Give {', '.join(others)} or {last}.")


def require_model(model: str | None, command: str) -> str:
    """The model of a command that has no default.

    Raises:
        ConfigError: None was given.
    """
    if model is None:
        raise ConfigError(f"Give a model: arl2 {command} MODEL, a name that 'arl2 models' lists, a folder or a file.")
    return model


def check_source(source: ModelSource) -> None:
    """Refuse files and models that are not there, before anything large is imported.

    Raises:
        ConfigError: A file, by its own option.
        CheckpointError: A model.
    """
    names = ("weights", "base", "vae", "text_encoder", "config")
    check_there({f"--{name.replace('_', '-')}": getattr(source, name) for name in names})
    if source.model is not None:
        require_named_model(source.model)


def check_there(files: Mapping[str, Path | None]) -> None:
    """Refuse files or folders that are not there, given by their options.

    Raises:
        ConfigError: As said.
    """
    for option, path in files.items():
        if path is not None and not path.exists():
            raise ConfigError(f"There is no '{path}' ({option}); check the path.")


def only_models(given: SamplingOptions) -> None:
    """Refuse options of sampling where nothing is sampled: only folders of videos are given.

    Raises:
        ConfigError: As said.
    """
    options = {
        "--frames": "num_frames",
        "--seed": "seed",
        "--steps": "steps",
        "--window": "window",
        "--candidates": "first_block_candidates",
    }
    default = SamplingOptions()
    for name, field in options.items():
        if getattr(given, field) != getattr(default, field):
            raise ConfigError(f"{name} goes with models, and only folders of videos are given; leave it out.")
