"""The loaded components of a pipeline, which a stream runs with, and tensors on their way to its codec."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from arl2.model.reward_model import RewardModel
from arl2.model.settings import GenerationSettings
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.rollout.frames import FramePlan, plan_frames
from arl2.text.interface import TextPart
from arl2.video.codec import VideoCodec


@dataclass(frozen=True)
class Components:
    """Transformer, codec, text part and settings of one model; a reward model (verifier) if it has one."""

    transformer: CausalWanTransformer3DModel
    codec: VideoCodec
    text: TextPart
    settings: GenerationSettings
    verifier: RewardModel | None = None

    @property
    def block_frames(self) -> int:
        """Latent frames denoised together."""
        return int(self.transformer.config.block_frames)

    def plan_frames(self, num_frames: int) -> FramePlan:
        """The whole blocks that ``num_frames`` video frames take; ``GeometryError`` below 1."""
        return plan_frames(
            num_frames,
            temporal_factor=self.codec.temporal_factor,
            block_frames=self.block_frames,
            first_block_frames=self.settings.first_block_frames,
        )


@runtime_checkable
class VideoModel(Protocol):
    """What conditioning frames are prepared for: ``Components``, or a pipeline."""

    @property
    def codec(self) -> VideoCodec: ...

    @property
    def settings(self) -> GenerationSettings: ...

    @property
    def block_frames(self) -> int: ...

    def plan_frames(self, num_frames: int) -> FramePlan: ...


def for_codec(codec: VideoCodec, x: Tensor) -> Tensor:
    """On the codec's device, in its precision; as it is for a codec without weights."""
    if not isinstance(codec, nn.Module):
        return x
    parameter = next(codec.parameters())
    return x.to(device=parameter.device, dtype=parameter.dtype)


def codec_device(codec: VideoCodec) -> torch.device | None:
    """Where a codec's weights are; None for one without weights."""
    return next(codec.parameters()).device if isinstance(codec, nn.Module) else None
