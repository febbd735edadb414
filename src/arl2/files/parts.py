"""The folder of one component of a model, ``config.json`` and ``*.safetensors``: checked, then read by its class."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from arl2.bases.choice import takes_own
from arl2.bases.models import ModelMixin, is_configured
from arl2.errors import CheckpointError, ConfigError
from arl2.files.exact import Misfits, fill, shapes_of
from arl2.files.plain import read_json, read_json_value, safetensors_of
from arl2.files.records import arguments_from_mapping
from arl2.files.regular import naming, parsed_by_others, require_regular
from arl2.files.tensors import read_safetensors, safetensors_shapes

# Settings that say how often a layer is built: a large number takes minutes before anything can be refused.
_DEPTHS = {"depth": 1000, "memory_layers": 1000}
LARGEST_TOKENIZER = 40_000_000  # bytes of a JSON file; that of UMT5 has 17 million


def load_part(kind: Any, place: Path, *, dtype: torch.dtype, ignored: Collection[str] = ()) -> Any:
    """A component in evaluation mode; every tensor of its file must fit, and none may be missing.

    Args:
        kind: its class; one that diffusers configures has its settings checked by its ``__init__``'s type hints.
        place: the folder.
        dtype: to compute in.
        ignored: settings that are stored for other readers.

    Raises:
        CheckpointError: a file that is missing or damaged, a setting that the class does not have or of another type,
            or tensors that are not exactly those of the class.
    """
    path = place / "config.json"
    config = read_json(path)
    own: dict[str, Any] = {}
    if is_configured(kind):
        own = {name: value for name, value in config.items() if not name.startswith("_") and name not in ignored}
        try:
            arguments_from_mapping(kind.__init__, own, where=str(path), most=_DEPTHS)
        except ConfigError as error:
            raise CheckpointError(f"{error} '{place}' is to hold a {kind.__name__}.") from error
        for file in safetensors_of(place):
            safetensors_shapes(file)
    if takes_own() and issubclass(kind, ModelMixin):
        return _read_part(kind, place, own, dtype)
    with naming(place), parsed_by_others(place, f"the folder of a whole {kind.__name__}"):
        part, report = kind.from_pretrained(place, torch_dtype=dtype, output_loading_info=True, local_files_only=True)
    unfit = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    _require_fit(unfit, kind, place)
    return part.eval()


def _read_part(kind: Any, place: Path, settings: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """As diffusers' ``from_pretrained`` does it: built without memory, then filled."""
    whole = f"the folder of a whole {kind.__name__}"
    with naming(place), parsed_by_others(place, whole), torch.device("meta"):
        part = kind(**settings)
    tensors = {name: tensor for file in safetensors_of(place) for name, tensor in read_safetensors(file).items()}
    misfits = Misfits.between(shapes_of(part), tensors)
    _require_fit([*misfits.missing, *misfits.extra, *misfits.misshapen], kind, place)
    with parsed_by_others(place, whole):
        fill(part, tensors, dtype=dtype)
    return part.eval()


def _require_fit(unfit: Sequence[str], kind: Any, place: Path) -> None:
    if unfit:
        raise CheckpointError(
            f"'{place}' is not exactly one {kind.__name__}: {len(unfit)} tensors are missing, unexpected or of another "
            f"shape, first {unfit[0]}."
        )


def require_tokenizer_files(folder: Path) -> None:
    """Check the files beside a ``tokenizer.json`` that a tokenizer library reads without being asked.

    Raises:
        CheckpointError: one that is no regular file, or JSON that cannot be read, is too large or too deep.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            read_json_value(path, limit=LARGEST_TOKENIZER)
        elif not path.is_dir():
            require_regular(path)
