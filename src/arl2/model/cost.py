"""What a transformer costs, counted from its configuration: operations and bytes, no measuring.

A multiply-add is two operations. Elementwise work, norms and the time path are left out: they cost bytes. What
self-attention costs, the spec of each layer says.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from arl2.attention.cost import BlockSeen, HeadSize
from arl2.attention.cost import MemoryBytes as MemoryBytes
from arl2.attention.cost import PassFlops as PassFlops
from arl2.attention.kind import AttentionSpec
from arl2.attention.layer_memory import MemoryGeometry
from arl2.attention.plan import converted_layers
from arl2.geometry import split_blocks
from arl2.model.config import ffn_rank_beside, layer_specs
from arl2.model.offload import SLOTS, piece_bytes
from arl2.model.precision import parameter_dtype
from arl2.model.transformer import CausalWanTransformer3DModel


def pass_flops(config: Mapping[str, Any], geometry: MemoryGeometry, *, past_frames: int, commit: bool) -> PassFlops:
    """Operations of one pass of a stream.

    Args:
        config: the transformer's.
        geometry: batch, token grid and frames of the block.
        past_frames: frames that softmax layers see before the block.
        commit: a cache-update pass (writes memory; the last layer stops there) or a denoising pass.

    Raises:
        ConfigError: a letter of the plan that no kind has.
    """
    size, tokens = HeadSize.of_config(config), geometry.block_tokens
    specs = layer_specs(config)
    total = PassFlops(linear=_end(config, tokens, config["in_channels"]))
    for spec in specs[:-1] if commit else specs:
        total += spec.read_flops(size, geometry, past_frames) + _cross_and_ffn(config, tokens, spec)
        if commit:
            total += spec.write_flops(size, geometry)
    if commit:
        return total + specs[-1].write_alone_flops(size, geometry)
    return total + PassFlops(linear=_end(config, tokens, config["out_channels"]))


def clip_flops(
    config: Mapping[str, Any],
    geometry: MemoryGeometry,
    *,
    frames: int,
    first_block_frames: int | None = None,
    attention_alone: bool = False,
) -> PassFlops:
    """Operations of one parallel forward of a whole clip under teacher forcing, both halves.

    Args:
        config: the transformer's.
        geometry: batch, token grid and frames of a block.
        frames: latent frames of the clip.
        first_block_frames: where the first block differs.
        attention_alone: count the self-attention of converted layers and nothing else: what stage 1 adds to the
            teacher's pass.

    Raises:
        GeometryError: frames that are not whole blocks.
        ConfigError: a letter of the plan that no kind has.
    """
    size, specs = HeadSize.of_config(config), layer_specs(config)
    blocks = list(_blocks(config, geometry, frames, first_block_frames))
    if attention_alone:
        own = [specs[i].clip_flops(size, blocks) for i in converted_layers(config["layer_plan"])]
        return sum(own, PassFlops())
    tokens = sum(block.block_tokens for block, _ in blocks)
    # The head reads the noisy half alone.
    total = PassFlops(
        linear=2 * _end(config, tokens, config["in_channels"]) + _end(config, tokens, config["out_channels"])
    )
    for spec in specs:
        total += spec.clip_flops(size, blocks) + _cross_and_ffn(config, tokens, spec).times(2)
    return total


def rollout_flops(
    config: Mapping[str, Any],
    geometry: MemoryGeometry,
    *,
    frames: int,
    passes: int,
    first_block_passes: int | None = None,
    first_block_frames: int | None = None,
    known_blocks: int = 0,
) -> PassFlops:
    """Operations of generating a clip block by block.

    Args:
        config: the transformer's.
        geometry: batch, token grid and frames of a block.
        frames: latent frames of the clip.
        passes: denoising passes of a block; a cache-update pass follows.
        first_block_passes: of the first block, where they differ.
        first_block_frames: where the first block differs.
        known_blocks: first blocks that are given, and cost a cache-update pass alone.

    Raises:
        GeometryError: frames that are not whole blocks.
        ConfigError: a letter of the plan that no kind has.
    """
    total = PassFlops()
    for number, (block, past) in enumerate(_blocks(config, geometry, frames, first_block_frames)):
        count = passes if number or first_block_passes is None else first_block_passes
        if number >= known_blocks:
            total += pass_flops(config, block, past_frames=past, commit=False).times(count)
        total += pass_flops(config, block, past_frames=past, commit=True)
    return total


def _blocks(
    config: Mapping[str, Any], geometry: MemoryGeometry, frames: int, first_block_frames: int | None
) -> Iterator[BlockSeen]:
    window = config["window"]
    for span in split_blocks(frames, geometry.block_frames, first_block_frames):
        past = span.start if window is None else min(span.start, window - len(span))
        yield BlockSeen(replace(geometry, block_frames=len(span)), past)


def _end(config: Mapping[str, Any], tokens: int, channels: int) -> int:
    """Of embedding patches, or of the head."""
    patch_values = config["patch_size"][1] * config["patch_size"][2] * channels
    return 2 * tokens * HeadSize.of_config(config).width * patch_values


def _cross_and_ffn(config: Mapping[str, Any], tokens: int, spec: AttentionSpec) -> PassFlops:
    width, hidden = HeadSize.of_config(config).width, config["ffn_dim"]
    rank = ffn_rank_beside(spec, config)
    linear = 4 * tokens * width**2 + 4 * tokens * width * hidden + 4 * tokens * rank * (width + hidden)
    return PassFlops(linear=linear, cross_attention=4 * tokens * config["text_len"] * width)


def memory_bytes(config: Mapping[str, Any], *, batch: int, frame_tokens: int, element_size: int) -> MemoryBytes:
    """Bytes of memory for ``batch`` streams.

    Args:
        config: the transformer's.
        frame_tokens: tokens a latent frame.
        element_size: bytes of a cached key or value (2 in half precision).

    Raises:
        ConfigError: a letter of the plan that no kind has.
    """
    size = HeadSize.of_config(config)
    each = (
        spec.memory_bytes(size, batch=batch, frame_tokens=frame_tokens, element_size=element_size)
        for spec in layer_specs(config)
    )
    return sum(each, MemoryBytes())


def prompt_bytes(config: Mapping[str, Any], *, batch: int, element_size: int) -> int:
    """Bytes of the cross-attention keys and values of ``batch`` prompts."""
    width, layers = HeadSize.of_config(config).width, len(config["layer_plan"])
    return 2 * layers * batch * config["text_len"] * width * element_size


def pass_bytes(config: Mapping[str, Any], *, tokens: int, dtype: torch.dtype) -> int:
    """Working memory of one pass over a block: an estimate.

    The widest moment is in the feed-forward (its hidden values before and after the GELU, a third time with a LoRA) or
    in self-attention, as its spec says.

    Args:
        config: complete, as :class:`TransformerSize` has it.
        tokens: of a block, of all samples.

    Raises:
        ConfigError: a letter of the plan that no kind has.
    """
    size, specs = HeadSize.of_config(config), layer_specs(config)
    has_lora = any(ffn_rank_beside(spec, config) for spec in specs)
    hidden = (3 if has_lora else 2) * dtype.itemsize * config["ffn_dim"] + 4 * dtype.itemsize * size.width
    attention = max(spec.pass_bytes(size, dtype.itemsize) for spec in specs)
    rotation = 16 * size.head_dim  # angles in float64, cosine and sine in float32
    return tokens * (max(hidden, attention) + dtype.itemsize * size.width + rotation)


class TransformerSize(NamedTuple):
    """A transformer without its weights.

    Attributes:
        config: complete, defaults filled in.
        parameters: that are of the compute dtype.
        float32_parameters: that are float32 in any case.
    """

    config: Mapping[str, Any]
    parameters: int
    float32_parameters: int

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Of all parameters in a model that computes in ``dtype``."""
        return self.parameters * dtype.itemsize + self.float32_parameters * max(4, dtype.itemsize)


def transformer_size(config: Mapping[str, Any]) -> TransformerSize:
    """Sizes of a transformer, from its configuration: it is built without memory.

    Raises:
        ConfigError: a configuration that cannot be.
    """
    own = {name: value for name, value in config.items() if not name.startswith("_")}
    layer_specs(own)  # a size remembered from before must not hide a letter that is not known now
    return _transformer_size(json.dumps(own, sort_keys=True))


@functools.lru_cache(maxsize=16)
def _transformer_size(config: str) -> TransformerSize:
    with torch.device("meta"):
        model = CausalWanTransformer3DModel(**json.loads(config))
    kept = compute = 0
    for name, parameter in model.named_parameters():
        if parameter_dtype(name, torch.bfloat16) is torch.float32:
            kept += parameter.numel()
        else:
            compute += parameter.numel()
    return TransformerSize(dict(model.config), compute, kept)


class OffloadedSize(NamedTuple):
    """Bytes of a transformer's weights where its layers are offloaded.

    Attributes:
        device: on the device: two slots for layers, and the small parts.
        host: in the machine's memory: all layers.
    """

    device: int
    host: int


def offloaded_size(size: TransformerSize, dtype: torch.dtype) -> OffloadedSize:
    """What :class:`arl2.model.offload.LayerStack` takes of a model that computes in ``dtype``."""
    config = {name: value for name, value in size.config.items() if not name.startswith("_")}
    return _offloaded_size(json.dumps(config, sort_keys=True), dtype)


@functools.lru_cache(maxsize=16)
def _offloaded_size(config: str, dtype: torch.dtype) -> OffloadedSize:
    with torch.device("meta"):
        model = CausalWanTransformer3DModel(**json.loads(config))

    def held(module: torch.nn.Module) -> dict[str, int]:
        named = module.named_parameters()
        return {name: parameter.numel() * parameter_dtype(name, dtype).itemsize for name, parameter in named}

    # A layer's own parameters stay on the device.
    waiting = [[size for name, size in held(layer).items() if "." in name] for layer in model.layers]
    pieces = [piece_bytes(sizes) for sizes in waiting]
    small = sum(held(model).values()) - sum(map(sum, waiting))
    return OffloadedSize(min(SLOTS, len(pieces)) * max(pieces) + small, sum(pieces))
