"""A pipeline from published parts: a base folder (text encoder, VAE), an AR checkpoint over it, and a config.

What each part is, its files say. What no file says (step list, block size, window) comes from the registry or from a
published config.
"""

import difflib
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from arl2.attention.plan import converted_layers, with_converted
from arl2.checkpoints.conversion import convert
from arl2.checkpoints.hub import located
from arl2.checkpoints.load import load_transformer
from arl2.checkpoints.reading import read_weights
from arl2.errors import CheckpointError, ConfigError
from arl2.model.registry import CARDS, find_card
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.folder import is_saved_pipeline, load_parts, pipeline_folder
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.pipeline.published import model_settings_of, read_published_config, settings_of
from arl2.rollout.settings import GenerationSettings
from arl2.text.interface import TextPart
from arl2.video.codec import VideoCodec

logger = logging.getLogger(__name__)

# Files of the first release's folder (Wan-AI/Wan2.1-T2V-1.3B); the diffusers repository has folders instead.
ORIGINAL_VAE, ORIGINAL_TEXT = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"
_ORIGINAL_TOKENIZER = "google/umt5-xxl"
_WEIGHT_FILES = (".pt", ".pth", ".safetensors")


class UntrainedConversionWarning(UserWarning):
    """A softmax model was made hybrid and nothing has trained its new layers."""


@dataclass(frozen=True)
class Recipe:
    """Where the parts are, and how they are used.

    Attributes:
        base: folder with text encoder, tokenizer and VAE, in the layout of diffusers or of the first release.
        weights: of the transformer: a file or a folder; None takes the base's own.
        settings: how to sample.
        model: what no weights file tells: ``block_frames``, ``window``, ``sink``.
    """

    base: Path
    weights: Path | None
    settings: GenerationSettings
    model: dict[str, Any] = field(default_factory=dict)


def assemble_pipeline(
    model: str | Path,
    *,
    weights: Path | None = None,
    base: Path | None = None,
    config: Path | None = None,
    decoder: Path | None = None,
    hybrid_layers: Sequence[int] | None = None,
    weights_branch: str = "auto",
    torch_dtype: torch.dtype = torch.float32,
) -> ARL2Pipeline:
    """Load a model by name, folder or file.

    Args:
        model: a name of the registry (``arl2 models``), a folder that ``save_pretrained`` wrote, a base folder, or an
            AR checkpoint (then ``base`` is needed).
        weights: AR checkpoint in any published layout, over the base.
        base: folder with text encoder and VAE, instead of the registry's.
        config: a published YAML config: step list, block size, window.
        decoder: weights of the tiny decoder (``taew2_1``) instead of the VAE.
        hybrid_layers: make these softmax layers hybrid, untrained; warns.
        weights_branch: of a file with EMA and plain weights: ``"auto"``, ``"ema"`` or ``"plain"``.
        torch_dtype: of transformer and codec.

    Raises:
        CheckpointError: a part that is missing, damaged, or not what it should be; a model that is not downloaded.
        ConfigError: an unknown name, or options that exclude each other.
    """
    if is_saved_pipeline(model):
        if base is not None or config is not None:
            raise ConfigError(f"'{model}' is a whole pipeline; base and config go with an AR checkpoint.")
        parts = load_parts(pipeline_folder(model), dtype=torch_dtype)
        pipe = ARL2Pipeline(parts.transformer, parts.codec, parts.text, parts.settings, parts.verifier)
        if weights is not None:
            kept = {name: pipe.transformer.config[name] for name in ("block_frames", "window", "sink", "text_len")}
            pipe.transformer = load_transformer(weights, weights=weights_branch, dtype=torch_dtype, **kept)
    else:
        recipe = find_recipe(model, weights=weights, base=base, config=config)
        source = recipe.weights or recipe.base
        transformer = load_transformer(source, weights=weights_branch, dtype=torch_dtype, **recipe.model)
        codec = load_codec(recipe.base, dtype=torch_dtype)
        pipe = ARL2Pipeline(transformer, codec, load_text(recipe.base), recipe.settings)
    if decoder is not None:
        pipe.codec = _with_tiny_decoder(pipe.codec, decoder, torch_dtype)
    if hybrid_layers:
        pipe.transformer = _converted(pipe.transformer, hybrid_layers)
    return pipe


def find_recipe(
    model: str | Path, *, weights: Path | None = None, base: Path | None = None, config: Path | None = None
) -> Recipe:
    """Which files a name, folder or checkpoint means. Loads nothing.

    Raises:
        CheckpointError, ConfigError: as ``assemble_pipeline``.
    """
    path = Path(model)
    settings, of_model = GenerationSettings(), {}
    if isinstance(model, str) and model in CARDS and not path.exists():
        card = find_card(model)
        settings = settings_of(card)
        of_model = model_settings_of(card)
        by_path = card.kind == "hybrid by path"
        if by_path and weights is None:
            raise CheckpointError(f"The weights of '{model}' are not on the Hub; give their file with --weights.")
        if base is None or (weights is None and card.weights_file is not None):
            # Weights of one's own need no others on this disk: the base alone then.
            wanted = card if weights is None else replace(card, weights_repo=None, weights_file=None)
            here = located(wanted)
            if here is None:
                raise CheckpointError(
                    f"'{model}' is not whole on this disk; fetch it with 'arl2 download {model}', or give its parts "
                    "with --base and --weights."
                )
            base, weights = base or here.base, weights or here.weights
    elif path.is_file() and path.suffix in _WEIGHT_FILES:
        if weights is not None:
            raise ConfigError(f"Two checkpoints came, '{model}' and '{weights}'; give one.")
        weights = path
    elif path.is_dir():
        base = base or path
    else:
        near = difflib.get_close_matches(str(model), CARDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(CARDS)}; or give a folder or a file."
        raise CheckpointError(f"There is no model '{model}'; {hint}")
    if base is None:
        raise CheckpointError(
            f"'{weights}' holds a transformer alone; give --base, a folder with its text encoder and VAE (such as a "
            "copy of Wan-AI/Wan2.1-T2V-1.3B-Diffusers)."
        )
    if config is not None:
        published = read_published_config(config)
        settings, of_model = published.settings, published.model_settings
    elif not of_model:
        logger.warning("No config came with '%s': sampled as a chunkwise student in 4 steps.", weights or base)
        of_model, settings = _unless_told(weights or base, settings)
    return Recipe(base, weights, settings, of_model)


def _unless_told(source: Path, settings: GenerationSettings) -> tuple[dict[str, Any], GenerationSettings]:
    """Blocks of 3 frames for weights that do not say; files of our own have a config beside them that does."""
    told = read_weights(source).config
    if "layer_plan" not in told:
        return {"block_frames": 3}, settings
    return {}, replace(settings, window=told.get("window"))


def load_codec(base: Path, *, dtype: torch.dtype) -> VideoCodec:
    """The VAE of a base folder, in either layout."""
    from arl2.video.wan_codec import WanCodec

    if (base / "vae").is_dir():
        codec: VideoCodec = WanCodec.from_pretrained(base / "vae", torch_dtype=dtype)
        return codec
    if (base / ORIGINAL_VAE).is_file():
        return WanCodec.from_published(base / ORIGINAL_VAE, torch_dtype=dtype)
    raise CheckpointError(f"'{base}' has no VAE: neither a folder 'vae' nor a file '{ORIGINAL_VAE}'; copy it anew.")


def load_text(base: Path) -> TextPart:
    """The text encoder of a base folder, in either layout, in bfloat16; read when a prompt is first encoded."""
    from arl2.text.umt5 import UMT5Text

    if (base / "text_encoder").is_dir():
        return UMT5Text.from_pretrained(base)
    if (base / ORIGINAL_TEXT).is_file():
        return UMT5Text.from_wan_original(base / ORIGINAL_TEXT, base / _ORIGINAL_TOKENIZER)
    raise CheckpointError(
        f"'{base}' has no text encoder: neither a folder 'text_encoder' nor a file '{ORIGINAL_TEXT}'; copy it anew."
    )


def _with_tiny_decoder(full: VideoCodec, path: Path, dtype: torch.dtype) -> VideoCodec:
    from arl2.video.pairing import PairedCodec
    from arl2.video.tiny_codec import TinyCodec

    return PairedCodec(encoder=full, decoder=TinyCodec.from_published(path, torch_dtype=dtype)).eval()


def _converted(model: CausalWanTransformer3DModel, layers: Sequence[int]) -> CausalWanTransformer3DModel:
    plan = str(model.config.layer_plan)
    missing = sorted(set(layers) - set(converted_layers(plan)))
    if not missing:
        return model  # the file's own plan says the same
    result = convert(model, with_converted(plan, layers))
    warnings.warn(
        f"Layers {missing} were made hybrid without training: {result.new_parameters:,} of {result.parameters:,} "
        "parameters are at their start values, so blocks after the first will be wrong. All pretrained weights are "
        "kept. 'arl2 train align' and then 'arl2 train distill' train them.",
        UntrainedConversionWarning,
        stacklevel=3,
    )
    return result.model
