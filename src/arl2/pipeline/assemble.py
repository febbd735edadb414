"""From a source to the loaded components of a pipeline: resolved, memory planned and checked, then loaded."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from arl2.attention.lora import LoRA
from arl2.attention.plan import converted_layers, with_converted
from arl2.checkpoints.conversion import convert
from arl2.errors import CheckpointError
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline import folder as saved
from arl2.pipeline.budget import available_bytes, check_fits
from arl2.pipeline.options import ModelSource, SamplingOptions
from arl2.pipeline.planning import ORIGINAL_TEXT, ORIGINAL_VAE, plan_source
from arl2.pipeline.resolve import ResolvedSource, resolve_source
from arl2.streams.components import Components
from arl2.text.interface import TextPart
from arl2.video.codec import VideoCodec

_ORIGINAL_TOKENIZER = "google/umt5-xxl"


class UntrainedConversionWarning(UserWarning):
    """A softmax model was made hybrid and nothing has trained its new layers."""


def load_components(
    source: ModelSource,
    options: SamplingOptions | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    batch: int = 1,
    say: Callable[[str], None] | None = None,
) -> Components:
    """Load a model on the CPU, after checking that published parts and what is to be sampled fit into memory.

    Args:
        source: which model.
        options: what will be sampled, as far as memory depends on it.
        dtype: of transformer and codec; a few parameters of the transformer are float32 in any case.
        device: where the model will run.
        batch: videos at once.
        say: gets one sentence about the memory that published parts will take.

    Raises:
        CheckpointError: a part that is missing or damaged; a model that is not downloaded.
        ConfigError: an unknown name, or options that exclude each other.
        MemoryBudgetError: published parts that will not fit.
    """
    resolved = resolve_source(source)
    if resolved.base is not None:
        check_base(resolved.base)
        plan = plan_source(resolved, options or SamplingOptions(), batch=batch, dtype=dtype, device=device)
        if say is not None:
            parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in plan.parts().items())
            say(f"memory on {device}: about {plan.peak / 1e9:.2f} GB at the most ({parts})")
        check_fits(plan, available_bytes(device), device)
    return _loaded(resolved, dtype)


def _loaded(resolved: ResolvedSource, dtype: torch.dtype) -> Components:
    settings, verifier = resolved.settings, None
    if resolved.folder is not None:
        text, codec = saved.load_text(resolved.folder), saved.load_codec(resolved.folder, dtype=dtype)
        verifier = saved.load_reward_model(resolved.folder) if resolved.folder.verifier.is_dir() else None
        transformer = resolved.weights.transformer(dtype)
    else:
        assert resolved.base is not None  # only ``transformer_alone`` leaves both out
        transformer = resolved.weights.transformer(dtype)
        codec, text = load_published_codec(resolved.base, dtype=dtype), load_published_text(resolved.base)
    if resolved.decoder is not None:
        codec = _with_tiny_decoder(codec, resolved.decoder, dtype)
    if resolved.hybrid_layers:
        transformer = _converted(transformer, resolved.hybrid_layers)
    elif untrained := untrained_layers(transformer):
        warnings.warn(
            f"Layers {untrained} are hybrid and untrained: their LoRA adapters are at their start values, so blocks "
            "after the first will be wrong. 'arl2 train align' and then 'arl2 train distill' train them.",
            UntrainedConversionWarning,
            stacklevel=3,
        )
    return Components(transformer, codec, text, settings, verifier)


def check_base(base: Path) -> None:
    """Raise ``CheckpointError`` for a base folder without VAE or text encoder, in either layout."""
    for what, name, original in (("VAE", "vae", ORIGINAL_VAE), ("text encoder", "text_encoder", ORIGINAL_TEXT)):
        if not (base / name).is_dir() and not (base / original).is_file():
            raise CheckpointError(
                f"'{base}' has no {what}: neither a folder '{name}' nor a file '{original}'; copy it again."
            )


def load_published_codec(base: Path, *, dtype: torch.dtype) -> VideoCodec:
    """The VAE of a base folder that ``check_base`` accepts."""
    from arl2.video.wan_codec import WanCodec

    if (base / "vae").is_dir():
        codec: VideoCodec = WanCodec.from_pretrained(base / "vae", torch_dtype=dtype)
        return codec
    return WanCodec.from_published(base / ORIGINAL_VAE, torch_dtype=dtype)


def load_published_text(base: Path) -> TextPart:
    """The text encoder of a base folder that ``check_base`` accepts, in bfloat16; read for the first prompt."""
    from arl2.text.umt5 import UMT5Text

    if (base / "text_encoder").is_dir():
        return UMT5Text.from_pretrained(base)
    return UMT5Text.from_wan_original(base / ORIGINAL_TEXT, base / _ORIGINAL_TOKENIZER)


def _with_tiny_decoder(full: VideoCodec, path: Path, dtype: torch.dtype) -> VideoCodec:
    from arl2.video.pairing import PairedCodec
    from arl2.video.tiny_codec import TinyCodec

    return PairedCodec(encoder=full, decoder=TinyCodec.from_published(path, torch_dtype=dtype)).eval()


def untrained_layers(model: CausalWanTransformer3DModel) -> list[int]:
    """Layers whose attention has LoRA adapters that no step has moved: their ``B`` is zero until then.

    A conversion without adapters (rank 0) cannot be told from a trained one.
    """
    untrained = []
    for i, layer in enumerate(model.layers):
        adapters = [part for name, part in layer.named_modules() if isinstance(part, LoRA) and "attention" in name]
        if adapters and not any(bool(adapter.B.any()) for adapter in adapters):
            untrained.append(i)
    return untrained


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
