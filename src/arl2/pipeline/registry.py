"""What a pipeline folder may name: embedded models, codec classes, text classes. Plain values, no torch.

Which class a codec or a text part is, a folder says by a name, and the tables here say what the name means. So a
folder cannot make the loader import anything else. Extensions add to all three.
"""

from dataclasses import dataclass
from pathlib import Path

from arl2.errors import CheckpointError, ConfigError, suggestion
from arl2.extensions import Registry, load_extensions
from arl2.files.plain import WEIGHT_SUFFIXES
from arl2.model.registry import CARDS


@dataclass(frozen=True)
class EmbeddedModel:
    """Where the parts of a model lie that an installed package holds.

    Attributes:
        own: folder of the transformer and ``generation.json``.
        shared: folder of the parts that ``own`` lacks: codec, text part, reward model. The text part and the reward
            model come from one folder, as the one reads what the other gives.
    """

    own: Path
    shared: Path


EMBEDDED: Registry[EmbeddedModel] = Registry("embedded model")
CODECS: Registry[str] = Registry(
    "codec",
    {
        "TinyCodec": "arl2.video.tiny_codec:TinyCodec",
        "AutoencoderKLWan": "arl2.video.wan_codec:WanCodec",
    },
)
TEXT_PARTS: Registry[str] = Registry(
    "text part",
    {
        "words": "arl2.text.words:WordText",
        "umt5": "arl2.text.umt5:UMT5Text",
    },
)
_default: list[str] = []


def register_model(name: str, own: Path, *, shared: Path | None = None, default: bool = False) -> None:
    """Add a model that an installed package holds.

    Args:
        name: also that of its card in :mod:`arl2.model.registry`.
        own, shared: as in ``EmbeddedModel``; None: ``own`` has all parts.
        default: it is what commands take when no model is named.

    Raises:
        ConfigError: another model has the name, or another one is the default.
    """
    if default and _default not in ([], [name]):
        raise ConfigError(f"Both '{_default[0]}' and '{name}' are to be the default model; register one as such.")
    EMBEDDED.register(name, EmbeddedModel(own, shared or own))
    _default[:] = [name] if default else _default


def register_codec(class_name: str, place: str) -> None:
    """Add a codec class, ``"module:Class"``, by the ``_class_name`` of its config."""
    CODECS.register(class_name, place)


def register_text(name: str, place: str) -> None:
    """Add a text class, ``"module:Class"``, by the name that ``generation.json`` gives as ``text``."""
    TEXT_PARTS.register(name, place)


def default_model() -> str:
    """The model that commands take when none is named; raises ``ConfigError`` if no extension brings one."""
    load_extensions()
    if not _default:
        raise ConfigError("No model is named and none is installed; give a name that 'arl2 models' lists, or a folder.")
    return _default[0]


def require_model(model: str) -> None:
    """Refuse a model that is neither a known name nor a path, as loading it would, without importing torch.

    Raises:
        CheckpointError: as said.
    """
    if model not in EMBEDDED and model not in CARDS and not Path(model).exists():
        raise no_such_model(model)


def no_such_model(model: str) -> CheckpointError:
    """The error for it; what looks like a path is called one."""
    path = Path(model)
    if path.suffix in WEIGHT_SUFFIXES or len(path.parts) > 1:
        return CheckpointError(
            f"There is no file or folder '{model}'; check the path, or give a name that 'arl2 models' lists."
        )
    return CheckpointError(f"There is no model '{model}'. {suggestion(model, CARDS)} Or give a folder or a file.")
