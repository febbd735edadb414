"""From a file to a model: built on the meta device, filled by assignment, exact keys or an error."""

import inspect
import logging
from pathlib import Path
from typing import Any

import torch

from arl2.checkpoints.layouts import Layout, Translated, translate
from arl2.checkpoints.reading import WeightsFile, read_weights
from arl2.checkpoints.sizes import config_from_tensors, require_text_to_video
from arl2.errors import ConfigError
from arl2.files.exact import fill, require_exact, shapes_of
from arl2.files.float8 import exact_dtype
from arl2.files.records import arguments_from_mapping
from arl2.files.regular import naming, parsed_by_others
from arl2.model.precision import parameter_dtype
from arl2.model.transformer import FOR_OTHER_READERS, CausalWanTransformer3DModel

logger = logging.getLogger(__name__)

# Of published LoRAs, whatever their rank: the default of the published code. No file of its layout says it.
PUBLISHED_ALPHA = 32.0


def load_transformer(
    path: str | Path,
    *,
    weights: str = "auto",
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> CausalWanTransformer3DModel:
    """Load a transformer from any published layout.

    The layer plan, ranks and sizes are read off the file. Files are mapped, not copied: tensors that need no cast are
    read from disk when first used.

    Args:
        path: ``.safetensors``, a checkpoint (``.pt``, ``.pth``, ``.bin``, ``.ckpt``), or a folder (of weights, or of a
            whole pipeline).
        weights: of a file with EMA and plain weights, which: ``"auto"`` prefers the EMA.
        dtype: to compute in; as stored if None (bfloat16 for weights stored in 8 bits). A few parameters are float32 in
            any case.
        device: where the model goes.
        **settings: what no file tells: ``num_attention_heads``, ``text_len``, ``block_frames``, ``window``, ``sink``,
            ``sink_positions``, ``low_rank_alpha``, ``eps``. They win over a ``config.json`` beside the weights.

    Raises:
        CheckpointError: a file that is broken, of an unknown layout, or not exactly one model.
        ConfigError: a setting that is not accepted.
    """
    file = read_weights(path, branch=weights)
    translated = translate(file.tensors, str(file.path), file.scales)
    return build_transformer(file, translated, dtype=dtype, device=device, **settings)


def transformer_config(path: str | Path, *, weights: str = "auto", **settings: Any) -> dict[str, Any]:
    """The configuration that ``load_transformer`` would build; reads names and shapes alone. Errors as there."""
    file = read_weights(path, branch=weights)
    return config_of(file, translate(file.tensors, str(file.path), file.scales), settings)


def build_transformer(
    file: WeightsFile,
    translated: Translated,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> CausalWanTransformer3DModel:
    """As :func:`load_transformer`, from weights already read and renamed."""
    where = str(file.path)
    config = config_of(file, translated, settings)
    if assumes_alpha(file, translated, settings):
        logger.warning(
            "%s does not say its LoRA alpha: %g is assumed, the published default. Set another with --lora-alpha, or "
            "low_rank_alpha in Python.",
            where,
            PUBLISHED_ALPHA,
        )
    arguments_from_mapping(CausalWanTransformer3DModel.__init__, config, where=where)
    # Sizes of a damaged config lead torch to many an error.
    with naming(where), parsed_by_others(file.path, "a model that can be built"), torch.device("meta"):
        model = CausalWanTransformer3DModel(**config)
    require_exact(shapes_of(model), translated.tensors, where=where, what="model")
    compute_dtype = dtype or exact_dtype(translated.tensors["patch_embedding.weight"])
    fill(
        model,
        translated.tensors,
        dtype=compute_dtype,
        dtype_of=parameter_dtype,
        device=device,
        scales=translated.scales,
    )
    return model.eval()


def config_of(file: WeightsFile, translated: Translated, settings: dict[str, Any]) -> dict[str, Any]:
    """As :func:`transformer_config`, of weights already read and renamed."""
    where = str(file.path)
    if translated.layout is Layout.NATIVE and "layer_plan" in file.config:
        config = _native_config(file.config, settings, where)
    else:
        config = config_from_tensors(translated.tensors, file.config, settings, where)
        if _lacks_alpha(translated, config):
            config = {**config, "low_rank_alpha": PUBLISHED_ALPHA}
    require_text_to_video(config, where)
    return config


def assumes_alpha(file: WeightsFile, translated: Translated, settings: dict[str, Any]) -> bool:
    """Whether the weights have LoRAs of which nothing says the alpha, so that the published default is taken."""
    if translated.layout is Layout.NATIVE and "layer_plan" in file.config:
        return False
    return _lacks_alpha(translated, config_from_tensors(translated.tensors, file.config, settings, str(file.path)))


def _lacks_alpha(translated: Translated, config: dict[str, Any]) -> bool:
    has_lora = any(".change" in name for name in translated.tensors)
    return translated.layout is not Layout.NATIVE and has_lora and "low_rank_alpha" not in config


def _native_config(saved: dict[str, Any], settings: dict[str, Any], where: str) -> dict[str, Any]:
    ours = {key: value for key, value in saved.items() if not key.startswith("_") and key not in FOR_OTHER_READERS}
    known = set(inspect.signature(CausalWanTransformer3DModel.__init__).parameters) - {"self"}
    unknown = sorted((set(ours) | set(settings)) - known)
    if unknown:
        raise ConfigError(f"{where}: setting {unknown[0]} is not known; accepted are {', '.join(sorted(known))}.")
    return {**ours, **settings}
