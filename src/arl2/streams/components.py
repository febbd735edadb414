"""The components of a pipeline, loaded: what a stream runs with."""

from dataclasses import dataclass

from arl2.model.reward_model import RewardModel
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.rollout.settings import GenerationSettings
from arl2.text.interface import TextPart
from arl2.video.codec import VideoCodec


@dataclass(frozen=True)
class Components:
    """Transformer, codec, text part and settings of one model; a verifier where it has one."""

    transformer: CausalWanTransformer3DModel
    codec: VideoCodec
    text: TextPart
    settings: GenerationSettings
    verifier: RewardModel | None = None
