"""From a :class:`ModelSource` to files: where each component is, how the model is sampled, its weights opened once.

What a component is, its files say. What no file holds (denoising steps, block size, window) comes from a model card or
a published config.
"""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from arl2.checkpoints.conversion import config_after
from arl2.checkpoints.hub import located
from arl2.checkpoints.reading import TRANSFORMER, config_beside, holds_weights
from arl2.checkpoints.stored import StoredWeights
from arl2.errors import CheckpointError, ConfigError
from arl2.files.plain import WEIGHT_SUFFIXES, read_json
from arl2.model.registry import CARDS, find_card
from arl2.model.settings import GenerationSettings
from arl2.pipeline.folder import PipelineFolder, is_saved_pipeline, load_settings, pipeline_folder, require_files
from arl2.pipeline.options import ModelSource
from arl2.pipeline.parts import has_parts
from arl2.pipeline.published import read_published_config
from arl2.pipeline.registry import default_model, no_such_model

logger = logging.getLogger(__name__)

_TINY_FILES = ("taew2_1.safetensors", "taew2_1.pth")
_KEPT = ("block_frames", "window", "sink", "text_len")  # of a saved pipeline's transformer, for other weights


@dataclass(frozen=True)
class ResolvedSource:
    """Where the components of a model are. Nothing is loaded, and the weights are opened only once.

    Attributes:
        weights: of the transformer.
        settings: how it is sampled.
        folder: of a saved pipeline, with codec, text part and perhaps a reward model; None for published parts.
        base: folder of a published text encoder and VAE, in the layout of diffusers or of Wan's first release; None for
            a saved pipeline, for a transformer alone, and where ``vae`` and ``text_encoder`` are given.
        vae, text_encoder: given by themselves, over those of folder or base.
        decoder: file of the tiny decoder, if it is used.
        hybrid_layers: softmax layers to make hybrid, untrained.
    """

    weights: StoredWeights
    settings: GenerationSettings
    folder: PipelineFolder | None = None
    base: Path | None = None
    vae: Path | None = None
    text_encoder: Path | None = None
    decoder: Path | None = None
    hybrid_layers: tuple[int, ...] = ()

    @property
    def is_published(self) -> bool:
        """Whether codec and text part are published ones, rather than those of a saved pipeline, or none."""
        return self.folder is None and (self.base is not None or None not in (self.vae, self.text_encoder))

    @cached_property
    def config(self) -> dict[str, Any]:
        """Of the transformer, conversion included."""
        config = self.weights.config
        return config_after(config, self.hybrid_layers) if self.hybrid_layers else config


def resolve_source(source: ModelSource, *, heads: int | None = None, transformer_alone: bool = False) -> ResolvedSource:
    """Find the files that a source means.

    Args:
        source: a name of the registry, a saved pipeline, a base folder, or an AR checkpoint with its base.
        heads: attention heads, for a file whose shapes do not tell.
        transformer_alone: accept a checkpoint without codec and text part.

    Raises:
        CheckpointError: no such model, a part that is missing, or a model that is not downloaded.
        ConfigError: options that exclude each other, or a config that cannot be read.
    """
    model, weights = _model_and_weights(source)
    given: dict[str, Any] = {} if heads is None else {"num_attention_heads": heads}
    if source.lora_alpha is not None:
        given["low_rank_alpha"] = source.lora_alpha
    branch = source.weights_branch or "auto"
    if is_saved_pipeline(model):
        if source.base is not None or source.config is not None:
            raise ConfigError(f"'{model}' is a saved pipeline; base and config go with an AR checkpoint.")
        if source.lora_alpha is not None and weights is None:
            raise ConfigError(f"'{model}' is a saved pipeline, which knows its LoRA alpha; leave lora_alpha out.")
        folder = pipeline_folder(model)
        require_files(folder)
        stored = StoredWeights(folder.transformer, branch, given)
        if weights is not None:
            own = read_json(folder.transformer / "config.json")
            stored = StoredWeights(weights, branch, {**{name: own[name] for name in _KEPT if name in own}, **given})
        found = ResolvedSource(stored, load_settings(folder), folder)
    elif transformer_alone and source.base is None and _is_transformer_alone(Path(model)):
        found = ResolvedSource(StoredWeights(Path(model), branch, given), GenerationSettings())
    else:
        found = _published(model, weights, source, given)
    return replace(
        found,
        vae=source.vae,
        text_encoder=source.text_encoder,
        decoder=_decoder(source),
        hybrid_layers=tuple(source.hybrid_layers),
    )


def _model_and_weights(source: ModelSource) -> tuple[str, Path | None]:
    """A checkpoint without a model's name goes over the base; without a base, too, it is the model."""
    if source.model is None and source.base is not None:
        return str(source.base), source.weights
    if source.model is None and source.weights is not None:
        return str(source.weights), None
    return str(source.model or default_model()), source.weights


def _published(model: str, weights: Path | None, source: ModelSource, given: dict[str, Any]) -> ResolvedSource:
    path, base = Path(model), source.base
    settings: GenerationSettings | None = None
    of_model: dict[str, Any] = {}
    if model in CARDS and not path.exists():
        card = find_card(model)
        settings, of_model = card.settings, card.model_settings
        if card.kind == "hybrid by path" and weights is None:
            raise CheckpointError(f"The weights of '{model}' are not on the Hub; give their file with --weights.")
        whole = base is not None or None not in (source.vae, source.text_encoder)
        if not whole or (weights is None and (base is None or card.weights_file is not None)):
            # With weights of one's own, only the base has to be on this disk.
            wanted = card if weights is None else replace(card, weights_repo=None, weights_file=None)
            here = located(wanted)
            if here is None:
                raise CheckpointError(
                    f"'{model}' is not complete on this disk; fetch it with 'arl2 download {model}', or give its parts "
                    "with --base and --weights."
                )
            base, weights = base or here.base, weights or here.weights
    elif path.is_file() and path.suffix in WEIGHT_SUFFIXES:
        if weights is not None:
            raise ConfigError(f"Got two checkpoints, '{model}' and '{weights}'; give one.")
        weights = path
    elif path.is_dir():
        if base is None and not _is_transformer_alone(path):
            base = path
        elif weights is not None:
            raise ConfigError(f"Got weights twice, the folder '{model}' and '{weights}'; give one.")
        else:
            weights = path
    elif path.exists():
        raise CheckpointError(
            f"'{model}' is no checkpoint: those end in {', '.join(WEIGHT_SUFFIXES)}. Give one, or a folder."
        )
    else:
        raise no_such_model(model)
    if base is None and None in (source.vae, source.text_encoder):
        raise CheckpointError(
            f"'{weights}' holds a transformer alone; give --base, a folder with its text encoder and VAE (such as a "
            "copy of Wan-AI/Wan2.1-T2V-1.3B-Diffusers), or both with --text-encoder and --vae."
        )
    if source.config is not None:
        published = read_published_config(source.config)
        settings, of_model = published.settings, published.model_settings
    place = weights or base
    assert place is not None  # without a base there are weights
    if place == base and not (has_parts(place) or holds_weights(place) or (place / TRANSFORMER).is_dir()):
        raise CheckpointError(f"The folder '{place}' holds no model; give a pipeline folder or a base folder.")
    if settings is None:
        logger.warning("Got no config for '%s': sampled as a chunkwise student in 4 steps.", place)
        own = config_beside(place)
        if "layer_plan" in own:  # one of our own, which holds block size and window
            settings = GenerationSettings(window=own.get("window"))
        else:
            settings, of_model = GenerationSettings(), {"block_frames": 3}
    stored = StoredWeights(place, source.weights_branch or "auto", {**of_model, **given})
    return ResolvedSource(stored, settings, base=base)


def _is_transformer_alone(path: Path) -> bool:
    """Whether a path is a file of weights, or a folder of them without published text encoder and VAE."""
    if not path.is_dir():
        return path.is_file()
    return not has_parts(path) and (holds_weights(path) or (path / TRANSFORMER).is_dir())


def _decoder(source: ModelSource) -> Path | None:
    if source.decoder is None:
        return None
    given = Path(source.decoder)
    if source.decoder != "tiny" or given.exists():
        return given
    folders = [folder for folder in (source.base, Path(source.model or ""), Path()) if folder is not None]
    for place in (folder / name for folder in folders for name in _TINY_FILES):
        if place.is_file():
            return place
    raise ConfigError(
        f"Found no tiny decoder: looked for {' and '.join(_TINY_FILES)} in the base and the working folder; give its "
        "path with --decoder FILE."
    )
