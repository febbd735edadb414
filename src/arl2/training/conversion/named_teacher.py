"""Teachers given by name: their sizes for a dry run without any file, and where to get the files of a run."""

from pathlib import Path
from typing import Any, NamedTuple

from arl2.errors import ConfigError
from arl2.model.presets import PRESETS, preset_config
from arl2.model.registry import CARDS
from arl2.pipeline.options import ModelSource
from arl2.pipeline.registry import EMBEDDED
from arl2.pipeline.resolve import resolve_source
from arl2.rollout.settings import GenerationSettings

_CHUNKWISE: dict[str, Any] = {"block_frames": 3}  # of a preset, whose name does not say


class NamedSizes(NamedTuple):
    """What is known of a model by its name: arguments of its transformer, and how it is sampled."""

    transformer: dict[str, Any]
    settings: GenerationSettings


def named_sizes(name: str | Path) -> NamedSizes | None:
    """Of a published model or a preset; None for what is embedded, a folder, or unknown.

    Raises:
        ConfigError: a hybrid model.
    """
    if not isinstance(name, str) or name in EMBEDDED or Path(name).exists():
        return None
    if name in PRESETS:
        return NamedSizes(preset_config(name, **_CHUNKWISE), GenerationSettings())
    card = CARDS.get(name)
    if card is None or card.preset is None:
        return None
    if card.kind == "hybrid by path":
        raise ConfigError(f"'{name}' is a hybrid model, but a teacher is a softmax model: give causal-forcing.")
    return NamedSizes(preset_config(card.preset, **card.model_settings), card.settings)


def require_folder(name: str | Path) -> None:
    """Say where the files of a teacher come from that was given by name.

    Raises:
        CheckpointError: a named model that is not on this disk.
        ConfigError: one that is, or a preset: a run reads the folder of a pipeline.
    """
    if named_sizes(name) is None:
        return
    if name in PRESETS:
        raise ConfigError(f"'{name}' names sizes, enough for --dry-run; to train, give teacher the folder of a model.")
    resolve_source(ModelSource(model=str(name)))
    raise ConfigError(
        f"'{name}' is on this disk, but a run reads and exports the folder of a pipeline: make one with "
        f"'arl2 export {name} FOLDER' (large files are linked, not copied), and give teacher=FOLDER."
    )
