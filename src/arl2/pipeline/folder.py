"""The folder of a pipeline: ``transformer/``, ``codec/``, ``text/``, perhaps ``verifier/``, and ``generation.json``.

``verifier/`` holds the reward model; the folder keeps the name it was published with.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from arl2.errors import CheckpointError, suggestion
from arl2.extensions import named
from arl2.files.atomic import atomic_files, write_atomically
from arl2.files.modes import open_to_readers
from arl2.files.parts import load_part
from arl2.files.plain import read_json
from arl2.files.regular import first_line, naming, parsed_by_others
from arl2.model.reward_model import RewardModel
from arl2.model.settings import GenerationSettings, settings_from_mapping
from arl2.pipeline.registry import CODECS, EMBEDDED, TEXT_PARTS
from arl2.streams.components import Components
from arl2.text.interface import TextPart
from arl2.video.codec import VideoCodec

TRANSFORMER, CODEC, TEXT, VERIFIER, GENERATION = "transformer", "codec", "text", "verifier", "generation.json"
INDEX = "model_index.json"
INDEX_CLASS = "ARL2Pipeline; it is of the package arl2: load this folder with arl2.ARL2Pipeline.from_pretrained"
_MODEL_FILES = ("config.json", "*.safetensors")


@dataclass(frozen=True)
class PipelineFolder:
    """Where the components of a pipeline are.

    Attributes:
        transformer, codec, text: folders.
        verifier: folder of the reward model, which a model may lack.
        generation: file.
    """

    transformer: Path
    codec: Path
    text: Path
    verifier: Path
    generation: Path

    @classmethod
    def of(cls, folder: Path) -> "PipelineFolder":
        """A folder that ``save_pretrained`` wrote."""
        return cls(folder / TRANSFORMER, folder / CODEC, folder / TEXT, folder / VERIFIER, folder / GENERATION)

    def __str__(self) -> str:
        return str(self.transformer.parent)


def pipeline_folder(name: str | Path) -> PipelineFolder:
    """Of an embedded model, or of a path; ``CheckpointError`` for neither."""
    if isinstance(name, str) and name in EMBEDDED:
        own, shared = EMBEDDED[name].own, EMBEDDED[name].shared
        codec = own if (own / CODEC).is_dir() else shared
        words = own if (own / TEXT).is_dir() else shared
        return PipelineFolder(own / TRANSFORMER, codec / CODEC, words / TEXT, words / VERIFIER, own / GENERATION)
    folder = Path(name)
    if not folder.is_dir() and len(folder.parts) > 1:
        raise CheckpointError(f"There is no folder '{name}'; give one that save_pretrained or a training run wrote.")
    if not folder.is_dir():
        hint = suggestion(name, EMBEDDED)
        raise CheckpointError(f"There is no model '{name}'. {hint} Or give a folder that save_pretrained wrote.")
    return PipelineFolder.of(folder)


def is_saved_pipeline(model: str | Path) -> bool:
    """Whether a name is embedded, or a folder was written by ``save_pretrained`` (perhaps damaged since)."""
    if isinstance(model, str) and model in EMBEDDED:
        return True
    return (Path(model) / GENERATION).is_file() or (Path(model) / CODEC).is_dir()


def holds_only_a_pipeline(folder: Path) -> bool:
    """Whether a folder holds a saved pipeline, or a transformer as diffusers saves it, and nothing else to be lost."""
    names = {one.name for one in folder.iterdir()}
    if GENERATION in names:
        return names <= {TRANSFORMER, CODEC, TEXT, VERIFIER, GENERATION, "model_index.json"}
    if names == {TRANSFORMER}:  # an export in the layout of diffusers
        inside = folder / TRANSFORMER
        return inside.is_dir() and not inside.is_symlink() and _holds_only_a_transformer(inside)
    return _holds_only_a_transformer(folder)


def _holds_only_a_transformer(folder: Path) -> bool:
    names = {one.name for one in folder.iterdir()}
    stored = r"config\.json|diffusion_pytorch_model.*\.safetensors(\.index\.json)?"
    return "config.json" in names and all(re.fullmatch(stored, name) for name in names)


def load_settings(folder: PipelineFolder) -> GenerationSettings:
    """How the model of a folder is sampled.

    Raises:
        CheckpointError: a file that is missing or damaged.
        ConfigError: an unknown setting.
    """
    generation = read_json(folder.generation)
    generation.pop("text", None)
    settings = settings_from_mapping(generation, where=str(folder.generation))
    with naming(folder.generation):
        settings.sampler()  # steps that its shift maps onto each other are found here
    return settings


def load_codec(folder: PipelineFolder, *, dtype: torch.dtype) -> VideoCodec:
    """The codec of a folder; ``CheckpointError`` for one that is missing, damaged or of an unknown class."""
    place = folder.codec
    name = read_json(place / "config.json").get("_class_name")
    kind = _named(CODECS, name, f"{CODEC}/config.json names the codec")
    loaded: VideoCodec = load_part(kind, place, dtype=dtype)
    return loaded


def load_reward_model(folder: PipelineFolder) -> RewardModel:
    """The reward model of a folder that has one, in float32: it is small; errors as for ``load_parts``."""
    loaded: RewardModel = load_part(RewardModel, folder.verifier, dtype=torch.float32)
    return loaded.requires_grad_(False)


def load_text(folder: PipelineFolder) -> TextPart:
    """The text part of a folder; errors as for ``load_codec``."""
    kind = _named(TEXT_PARTS, text_name(folder), f"{GENERATION} names the text part")
    with naming(folder.text), parsed_by_others(folder.text, "the folder of a whole text part"):
        text: TextPart = kind.from_pretrained(folder.text)
    return text


def text_name(folder: PipelineFolder) -> object:
    """What ``generation.json`` calls the class of the text part."""
    return read_json(folder.generation).get("text")


def save_parts(parts: Components, folder: Path) -> None:
    """Write a pipeline folder; ``CheckpointError`` for a codec or text part of a class that the tables do not name."""
    codec_name, text_name = _name_of(CODECS, parts.codec), _name_of(TEXT_PARTS, parts.text)
    # The protocols do not promise that a component can be saved; the classes in the tables can.
    savable: dict[str, Any] = {CODEC: parts.codec, TEXT: parts.text}
    try:
        with atomic_files(folder) as staged:
            parts.transformer.save_pretrained(staged / TRANSFORMER)
            for part, saved in savable.items():
                saved.save_pretrained(staged / part)
            if parts.verifier is not None:
                parts.verifier.save_pretrained(staged / VERIFIER)
            assert read_json(staged / CODEC / "config.json")["_class_name"] == codec_name
            write_generation(staged, text_name, parts.settings)
            write_index(staged)
            open_to_readers(staged)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The model could not be saved to '{folder}' ({first_line(error)}); make room or choose another folder."
        ) from error


def write_generation(folder: Path, text_name: str, settings: GenerationSettings) -> None:
    """Write ``generation.json``: the settings, and the name of the text part's class."""
    content = json.dumps({"text": text_name, **settings.to_mapping()}, indent=1) + "\n"
    write_atomically(folder / GENERATION, content.encode())


def write_index(folder: Path) -> None:
    """Write ``model_index.json``, by which diffusers' own loaders say whose folder this is.

    They look its class up in diffusers by name and say that it has none of that name: so the name is a sentence.
    ``ARL2Pipeline`` does not read this file.
    """
    classes = {part: read_json(folder / part / "config.json").get("_class_name") for part in (TRANSFORMER, CODEC)}
    content = {"_class_name": INDEX_CLASS, **{part: ["arl2", name] for part, name in classes.items()}}
    write_atomically(folder / INDEX, (json.dumps(content, indent=1) + "\n").encode())


def require_files(folder: PipelineFolder) -> None:
    """Raise ``CheckpointError`` for a folder that lacks a component, naming what is missing."""
    missing = [] if folder.generation.is_file() else [GENERATION]
    for place, pattern in [
        (folder.text, "*"),
        *((place, one) for place in (folder.transformer, folder.codec) for one in _MODEL_FILES),
    ]:
        if not any(place.glob(pattern)):
            missing.append(f"{place.name}/{pattern}")
    if missing:
        raise CheckpointError(
            f"The model in '{folder}' is not complete: it has no {' and no '.join(missing)}; install or copy it again."
        )


def _named(table: Mapping[str, str], name: object, where: str) -> Any:
    """The class that a table gives a name."""
    if not isinstance(name, str) or name not in table:
        raise CheckpointError(f"{where} {name!r:.80}, which is not known. {suggestion(name, table)}")
    return named(table[name])


def _name_of(table: Mapping[str, str], part: object) -> str:
    place = f"{type(part).__module__}:{type(part).__qualname__}"
    for name, known in table.items():
        if known == place:
            return name
    raise CheckpointError(
        f"A {type(part).__name__} cannot be saved with a pipeline; it must be one of {', '.join(table.values())}."
    )
