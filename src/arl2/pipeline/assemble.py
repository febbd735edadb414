"""From a source to the loaded components of a pipeline: resolved, memory planned and checked, then loaded."""

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from arl2.attention.lora import LoRA
from arl2.attention.plan import converted_layers, with_converted
from arl2.checkpoints.conversion import convert
from arl2.errors import CheckpointError, ConfigError
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline import folder as saved
from arl2.pipeline.budget import check_fits
from arl2.pipeline.devices import automatic_dtype, has_own_memory
from arl2.pipeline.fitting import check_host_fits, placed, told
from arl2.pipeline.free_memory import available_bytes
from arl2.pipeline.options import ModelSource, SamplingOptions
from arl2.pipeline.parts import find_parts, find_tokenizer, load_text_encoder, load_vae
from arl2.pipeline.placement import NOT_OF_RANKS, place
from arl2.pipeline.planning import can_plan, plan_source
from arl2.pipeline.resolve import ResolvedSource, resolve_source
from arl2.streams.components import Components
from arl2.text.interface import TextPart
from arl2.video.codec import VideoCodec

logger = logging.getLogger(__name__)


class UntrainedConversionWarning(UserWarning):
    """A softmax model was made hybrid and nothing has trained its new layers."""


def load_components(
    source: ModelSource,
    options: SamplingOptions | None = None,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: str = "cpu",
    batch: int = 1,
    ranks: int = 1,
    say: Callable[[str], None] | None = None,
) -> Components:
    """Load a model onto its device, after checking that it and what is to be sampled fit into memory.

    Saved pipelines with a codec or a text part of other kinds than Wan's are not checked.

    Args:
        source: which model.
        options: what will be sampled, as far as memory depends on it.
        dtype: of transformer and codec; a few parameters of the transformer are float32 in any case. None: as fits the
            device and the model's size.
        device: where the model will run.
        batch: videos at once.
        ranks: processes that will share a stream, each with a device of its own.
        say: gets one sentence about the memory that published parts will take.

    Raises:
        CheckpointError: a part that is missing or damaged; a model that is not downloaded.
        ConfigError: an unknown name, options that exclude each other, or a device that layers cannot be offloaded from.
        MemoryBudgetError: parts that will not fit.
    """
    if source.offload == "layers" and ranks > 1:
        raise ConfigError(NOT_OF_RANKS)
    if source.offload == "layers" and not has_own_memory(device):
        raise ConfigError(
            f"Layers are offloaded from a GPU's own memory, and device {device} has none of its own; leave offload out."
        )
    wanted = "none" if ranks > 1 else source.offload
    resolved = resolve_source(source)
    if dtype is None:
        dtype = automatic_dtype(device, resolved.config)
    offload, text_on_device, execution = source.offload == "layers", True, source.execution
    if can_plan(resolved):
        graphs = device.startswith("cuda") and source.cuda_graphs != "off" and ranks == 1
        whole = plan_source(
            resolved, options or SamplingOptions(), batch=batch, dtype=dtype, device=device, graphs=graphs, ranks=ranks
        )
        free = available_bytes(device)
        plan = placed(whole, wanted, free, device, needs_graphs=source.cuda_graphs == "on")
        for sentence in told(plan, whole, free, device):
            logger.info("%s", sentence)
            if say is not None:
                say(sentence)
        check_fits(plan, free, device)
        check_host_fits(plan, available_bytes("cpu"))
        offload, text_on_device = plan.work.offload, plan.work.text_encoder != "elsewhere"
        if whole.seat and not plan.seat:
            execution = replace(execution, cuda_graphs="off")
    loaded = _loaded(resolved, dtype)
    place(loaded, device, offload=offload, text_on_device=text_on_device)
    loaded.transformer.execution = execution
    return loaded


def _loaded(resolved: ResolvedSource, dtype: torch.dtype) -> Components:
    settings, folder = resolved.settings, resolved.folder
    codec, text = load_codec(resolved, dtype=dtype), load_text(resolved)
    channels = resolved.config["in_channels"]
    if channels != codec.latent_channels:
        raise CheckpointError(
            f"The transformer '{resolved.weights.path}' works on latents of {channels} channels and the VAE on "
            f"{codec.latent_channels}; give the VAE that it was trained with (--vae or --base). Wan 2.1's has 16."
        )
    verifier = None if folder is None or not folder.verifier.is_dir() else saved.load_reward_model(folder)
    transformer = resolved.weights.transformer(dtype)
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


def load_codec(resolved: ResolvedSource, *, dtype: torch.dtype) -> VideoCodec:
    """The codec of a source: the VAE that is given, else that of its folder or base; with its tiny decoder."""
    if resolved.vae is not None:
        codec = load_vae(resolved.vae, dtype=dtype)
    elif resolved.folder is not None:
        codec = saved.load_codec(resolved.folder, dtype=dtype)
    else:
        codec = load_vae(find_parts(resolved.base, text_encoder=resolved.text_encoder).vae, dtype=dtype)
    return codec if resolved.decoder is None else _with_tiny_decoder(codec, resolved.decoder, dtype)


def load_text(resolved: ResolvedSource) -> TextPart:
    """The text part of a source: the text encoder that is given, else that of its folder or base."""
    if resolved.folder is not None:
        if resolved.text_encoder is None:
            return saved.load_text(resolved.folder)
        if saved.text_name(resolved.folder) != "umt5":
            raise ConfigError(f"The model in '{resolved.folder}' has no UMT5 text encoder; leave --text-encoder out.")
        return load_text_encoder(resolved.text_encoder, find_tokenizer(resolved.text_encoder, resolved.folder.text))
    parts = find_parts(resolved.base, vae=resolved.vae, text_encoder=resolved.text_encoder)
    return load_text_encoder(parts.text_encoder, parts.tokenizer)


def _with_tiny_decoder(full: VideoCodec, path: Path, dtype: torch.dtype) -> VideoCodec:
    from arl2.video.pairing import PairedCodec
    from arl2.video.tiny_codec import TinyCodec

    return PairedCodec(encoder=full, decoder=TinyCodec.from_published(path, torch_dtype=dtype)).eval()


def untrained_layers(model: CausalWanTransformer3DModel) -> list[int]:
    """Layers whose attention has LoRA adapters that no step has moved: their ``B`` is zero until then.

    A conversion without adapters (rank 0) cannot be told from a trained one. Kinds that start as the softmax layer are
    left out: nothing is wrong with them.
    """
    untrained = []
    for i, layer in enumerate(model.layers):
        adapters = [part for name, part in layer.named_modules() if isinstance(part, LoRA) and "attention" in name]
        if layer.self_attention.spec.starts_as_softmax:
            continue
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
