"""What a conversion changes, in numbers: parameters by kind of layer, what trains, and cost before and after."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arl2.attention.layer_memory import MemoryGeometry
from arl2.attention.plan import all_kinds
from arl2.checkpoints.conversion import Conversion
from arl2.geometry import token_grid
from arl2.model.cost import memory_bytes, pass_flops
from arl2.rollout.frames import plan_frames
from arl2.rollout.settings import GenerationSettings
from arl2.training.conversion.trainable import Stage, trained_parameters
from arl2.video.codec import SPATIAL_FACTOR, TEMPORAL_FACTOR

VIDEO_FRAMES = (81, 921)
_HALF = 2  # bytes of a cached number


@dataclass(frozen=True)
class LayerKind:
    """One kind of layer: how many there are, and numbers of one of them.

    Attributes:
        letter: in the plan; ``name`` in words.
        layers: how many.
        parameters: of one layer, new ones included.
        new: that no pretrained weight filled.
        stage_1, stage_2: that train in each stage.
    """

    letter: str
    name: str
    layers: int
    parameters: int
    new: int
    stage_1: int
    stage_2: int


@dataclass(frozen=True)
class BlockCost:
    """The last block of a video, and the memory of a stream then.

    Attributes:
        video_frames: of the video; ``latent_frames`` of it.
        flops_before, flops_after: of all its passes.
        memory_before, memory_after: bytes, in half precision.
    """

    video_frames: int
    latent_frames: int
    flops_before: int
    flops_after: int
    memory_before: int
    memory_after: int


@dataclass(frozen=True)
class ConversionReport:
    """All of it.

    Attributes:
        plan_before, plan_after: one letter a layer.
        pretrained: numbers of the model before.
        new: numbers that were added; ``stage_1`` and ``stage_2``: that train.
        kinds: by letter.
        passes: denoising passes of a block, each twice where the model is guided; the cache-update pass comes on top.
        costs: for ``VIDEO_FRAMES``.
        height, width, window: of the frame that the costs are for, and of the softmax layers.
    """

    plan_before: str
    plan_after: str
    pretrained: int
    new: int
    stage_1: int
    stage_2: int
    kinds: tuple[LayerKind, ...]
    passes: int
    costs: tuple[BlockCost, ...]
    height: int
    width: int
    window: int | None

    def share(self, trained: int) -> float:
        """Of the pretrained numbers, as the paper counts."""
        return trained / self.pretrained


def report_conversion(
    before: Mapping[str, Any], conversion: Conversion, settings: GenerationSettings
) -> ConversionReport:
    """Count; works on the meta device.

    Args:
        before: the configuration of the model that was converted.
        conversion: what ``convert`` gave.
        settings: how the model is sampled: passes of a block, and frame size.
    """
    model = conversion.model
    plan = str(model.config.layer_plan)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    new = set(conversion.new)
    stages: tuple[Stage, ...] = (1, 2)
    trained = {stage: set(trained_parameters(model, stage)) for stage in stages}
    kinds = []
    for kind in all_kinds():
        of_kind = [i for i, letter in enumerate(plan) if letter == kind.letter]
        # Layers of one kind are alike, but for those that were converted before: then some of it is not new.
        for added in sorted({_sum(sizes, i, new) for i in of_kind}):
            layers = [i for i in of_kind if _sum(sizes, i, new) == added]
            first = layers[0]
            kinds.append(
                LayerKind(
                    kind.letter,
                    kind.name,
                    len(layers),
                    _sum(sizes, first, set(sizes)),
                    added,
                    _sum(sizes, first, trained[1]),
                    _sum(sizes, first, trained[2]),
                )
            )
    sampler = settings.sampler(None)
    passes, streams = len(sampler.timesteps_of(1)), 1 if sampler.guidance_scale == 1.0 else 2
    return ConversionReport(
        plan_before=str(before["layer_plan"]),
        plan_after=plan,
        pretrained=conversion.parameters - conversion.new_parameters,
        new=conversion.new_parameters,
        stage_1=sum(sizes[name] for name in trained[1]),
        stage_2=sum(sizes[name] for name in trained[2]),
        kinds=tuple(kinds),
        passes=passes,
        costs=tuple(_cost(before, model.config, settings, passes, streams, frames) for frames in VIDEO_FRAMES),
        height=settings.height,
        width=settings.width,
        window=settings.window,
    )


def _sum(sizes: Mapping[str, int], layer: int, names: set[str]) -> int:
    return sum(size for name, size in sizes.items() if name in names and name.startswith(f"layers.{layer}."))


def _cost(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    settings: GenerationSettings,
    passes: int,
    streams: int,
    video_frames: int,
) -> BlockCost:
    block = int(after["block_frames"])
    frames = plan_frames(
        video_frames,
        temporal_factor=TEMPORAL_FACTOR,
        block_frames=block,
        first_block_frames=settings.first_block_frames,
    ).latent_frames
    grid = token_grid(settings.height // SPATIAL_FACTOR, settings.width // SPATIAL_FACTOR, tuple(after["patch_size"]))
    geometry = MemoryGeometry(batch=1, rows=grid.rows, columns=grid.columns, block_frames=block)
    kept = frames if settings.window is None else min(frames, settings.window)

    def flops(config: Mapping[str, Any]) -> int:
        one, clean = (pass_flops(config, geometry, past_frames=kept - block, commit=c).total for c in (False, True))
        return streams * (passes * one + clean)

    def memory(config: Mapping[str, Any]) -> int:
        return memory_bytes(config, batch=streams, frame_tokens=grid.tokens, element_size=_HALF).at(kept)

    return BlockCost(video_frames, frames, flops(before), flops(after), memory(before), memory(after))
