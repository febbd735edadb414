"""The folder of one component of a model, ``config.json`` and ``*.safetensors``: checked, then read by its class."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin

from arl2.errors import CheckpointError, ConfigError
from arl2.files.plain import read_json, read_json_value, safetensors_of
from arl2.files.records import arguments_from_mapping
from arl2.files.regular import naming, parsed_by_others, require_regular
from arl2.files.tensors import safetensors_shapes

# Settings that say how often a layer is built: a large number takes minutes before anything can be refused.
_DEPTHS = {"depth": 1000, "memory_layers": 1000}
_LARGEST_TOKENIZER = 40_000_000  # bytes of a JSON file; that of UMT5 has 17 million


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
    if issubclass(kind, ConfigMixin):
        own = {name: value for name, value in config.items() if not name.startswith("_") and name not in ignored}
        try:
            arguments_from_mapping(kind.__init__, own, where=str(path), most=_DEPTHS)
        except ConfigError as error:
            raise CheckpointError(f"{error} '{place}' is to hold a {kind.__name__}.") from error
        for file in safetensors_of(place):
            safetensors_shapes(file)
    with naming(place), parsed_by_others(place, f"the folder of a whole {kind.__name__}"):
        part, report = kind.from_pretrained(place, torch_dtype=dtype, output_loading_info=True, local_files_only=True)
    unfit = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if unfit:
        raise CheckpointError(
            f"'{place}' is not exactly one {kind.__name__}: {len(unfit)} tensors are missing, unexpected or of another "
            f"shape, first {unfit[0]}."
        )
    return part.eval()


def require_tokenizer_files(folder: Path) -> None:
    """Check the files beside a ``tokenizer.json`` that a tokenizer library reads without being asked.

    Raises:
        CheckpointError: one that is no regular file, or JSON that cannot be read, is too large or too deep.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            read_json_value(path, limit=_LARGEST_TOKENIZER)
        elif not path.is_dir():
            require_regular(path)
