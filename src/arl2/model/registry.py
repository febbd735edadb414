"""Named models: where their weights are, how they are sampled, what they cost. Plain values; importing loads no torch.

A card says what its model's authors published. Sizes in bytes are approximate, for planning.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from arl2.extensions import Registry
from arl2.model.settings import GenerationSettings

Kind = Literal["ar student", "multi-step", "embedded", "hybrid by path"]

WAN_BASE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
CAUSAL_FORCING = "zhuhz22/Causal-Forcing"
SELF_FORCING = "gdhe17/Self-Forcing"

# Of the base repository, as its file list gives them: the text encoder is stored in float32.
_TEXT_ENCODER_BYTES, _CODEC_BYTES, _TOKENIZER_BYTES = 22_730_000_000, 508_000_000, 22_000_000
_BASE_BYTES = _TEXT_ENCODER_BYTES + _CODEC_BYTES + _TOKENIZER_BYTES
# 1,418,996,800 parameters in float32. A file that holds EMA and plain weights takes this twice.
_TRANSFORMER_BYTES = 5_680_000_000

_CHUNKWISE_SETTINGS = GenerationSettings()
FOUR_STEPS = _CHUNKWISE_SETTINGS.steps

# The setting that Wan 2.1 and every model made from it was published with; another text is another model.
WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"  # noqa: RUF001
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"  # noqa: RUF001
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"  # noqa: RUF001
)


@dataclass(frozen=True)
class PublishedResult:
    """A figure that others report of a model; not measured here.

    Attributes:
        what: what was measured.
        value: with its unit.
        source: who says so.
    """

    what: str
    value: str
    source: str


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known of a named model.

    Attributes:
        name: what commands and ``find_card`` call it.
        summary: one sentence.
        kind: ``"ar student"`` (few steps, no guidance), ``"multi-step"`` (solver and guidance), ``"embedded"`` (ships
            with the package), ``"hybrid by path"`` (the weights are given as a path).
        base: Hub repository of text encoder, tokenizer and codec, in the diffusers layout; None if embedded.
        weights_repo, weights_file: Hub repository and file of the transformer; None where the base's own is meant, or
            where there is none to fetch.
        preset: size of the transformer, a name of :data:`arl2.model.presets.PRESETS`; None if it is none of them.
        settings: how it is sampled; the number of video frames is what it was trained on.
        block_frames: latent frames denoised together.
        sink: first latent frames that the window of softmax layers never evicts.
        image_to_video: whether an image may be the first frame.
        licence: of the weights.
        disk_bytes: of everything that is fetched, approximately; 0 if nothing is.
        device_bytes: of the device's memory at the published settings, in bfloat16, the text encoder gone once the
            prompt is read; approximately (:mod:`arl2.pipeline.budget` counts it for any settings).
        memory_note: what takes them.
        results: as published.
        notes: what a person should know before using it.
        examples: prompts that it understands, for those who try it.
    """

    name: str
    summary: str
    kind: Kind
    base: str | None
    weights_repo: str | None = None
    weights_file: str | None = None
    preset: str | None = "wan2.1-t2v-1.3b"
    settings: GenerationSettings = _CHUNKWISE_SETTINGS
    block_frames: int = 3
    sink: int = 0
    image_to_video: bool = False
    licence: str
    disk_bytes: int
    device_bytes: int
    memory_note: str
    results: tuple[PublishedResult, ...] = ()
    notes: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()

    @property
    def needs_base_transformer(self) -> bool:
        """Whether the transformer is the base repository's own."""
        return self.kind == "multi-step" and self.weights_file is None

    @property
    def model_settings(self) -> dict[str, Any]:
        """What no weights file holds: arguments for ``load_transformer``."""
        return {"block_frames": self.block_frames, "window": self.settings.window, "sink": self.sink}


_MEMORY_NOTE = (
    "bfloat16: transformer 2.9 GB, text encoder 11.4 GB until the prompt is read, 0.29 GB for each latent frame kept, "
    "decoder about 4 GB"
)
_SHORT = "Trained on 81 video frames; longer videos drift, and comparing it on those is unfair to it (its authors say)."
_LONG_PROMPTS = "Prompts of a few sentences work better than short ones: it was trained on such."


_CHUNKWISE = ModelCard(
    name="causal-forcing",
    summary="Causal Forcing, blocks of 3 latent frames, 4 steps: the steadiest of its family.",
    kind="ar student",
    base=WAN_BASE,
    weights_repo=CAUSAL_FORCING,
    weights_file="chunkwise/causal_forcing.pt",
    licence="Apache-2.0",
    disk_bytes=_BASE_BYTES + _TRANSFORMER_BYTES,
    device_bytes=15_000_000_000,
    memory_note=_MEMORY_NOTE,
    results=(
        PublishedResult("VBench total", "84.04", "Causal Forcing++, arXiv 2605.15141"),
        PublishedResult("first video frame", "0.60 s", "Causal Forcing++, arXiv 2605.15141"),
        PublishedResult(
            "against Self Forcing",
            "dynamic degree +19.3 %, VisionReward +8.7 %, instruction following +16.7 %",
            "Causal Forcing, arXiv 2602.02214",
        ),
    ),
    notes=(_SHORT, _LONG_PROMPTS),
)

_FRAMEWISE = replace(
    _CHUNKWISE,
    name="causal-forcing-framewise",
    summary="Causal Forcing, frame by frame, 4 steps: more motion, and it starts from an image.",
    weights_file="framewise/causal_forcing.pt",
    block_frames=1,
    image_to_video=True,
    device_bytes=17_000_000_000,
    results=(),
)


_CARDS = (
    _CHUNKWISE,
    _FRAMEWISE,
    replace(
        _FRAMEWISE,
        name="causal-forcing-2step",
        summary="Causal Forcing++, frame by frame, 2 steps after a first frame of 4.",
        weights_file="causal-forcing++/framewise-2step.pt",
        settings=GenerationSettings(steps=(1000, 500), first_block_steps=FOUR_STEPS),
        results=(
            PublishedResult("VBench total", "84.14", "Causal Forcing++, arXiv 2605.15141"),
            PublishedResult("video frames a second", "14.1", "Causal Forcing++, arXiv 2605.15141"),
            PublishedResult("first video frame", "0.27 s", "Causal Forcing++, arXiv 2605.15141"),
        ),
    ),
    replace(
        _FRAMEWISE,
        name="causal-forcing-1step",
        summary="Causal Forcing++, frame by frame, 1 step after a first frame of 4: the quickest.",
        weights_file="causal-forcing++/framewise-1step.pt",
        settings=GenerationSettings(steps=(1000,), first_block_steps=FOUR_STEPS),
    ),
    replace(
        _CHUNKWISE,
        name="causal-forcing-long",
        summary="Causal Forcing for videos of a minute, blocks of 3 latent frames, 4 steps.",
        weights_file="chunkwise/longvideo.pt",
        results=(),
        notes=(
            "Its authors run it with Rolling Forcing: several blocks at different sigmas are denoised together. "
            "Here blocks are denoised one after the other, so its published long-video quality is not promised.",
            "No window is published for this way of running it; give one to keep memory constant.",
            _LONG_PROMPTS,
        ),
    ),
    replace(
        _CHUNKWISE,
        name="self-forcing",
        summary="Self Forcing (DMD), blocks of 3 latent frames, 4 steps.",
        weights_repo=SELF_FORCING,
        weights_file="checkpoints/self_forcing_dmd.pt",
        licence="CC BY-NC-SA 4.0 (not for commercial use); the base is Apache-2.0",
        results=(PublishedResult("video frames a second on one H100", "17", "Self Forcing, its authors"),),
        notes=("Trained on 81 video frames; longer videos drift.", _LONG_PROMPTS),
    ),
    ModelCard(
        name="wan2.1-1.3b",
        summary="Wan 2.1 text-to-video 1.3B, the bidirectional model that the students were made from.",
        kind="multi-step",
        base=WAN_BASE,
        settings=GenerationSettings(solver="unipc", guidance_scale=3.0, negative_prompt=WAN_NEGATIVE_PROMPT),
        licence="Apache-2.0",
        disk_bytes=_BASE_BYTES + _TRANSFORMER_BYTES,
        device_bytes=21_000_000_000,
        memory_note=f"{_MEMORY_NOTE}; guidance keeps the frames of two prompts",
        notes=(
            "Not an autoregressive model: run block by block it makes poor videos. Use it to plan memory, to measure "
            "speed, and as the start of a conversion or of training.",
        ),
    ),
    ModelCard(
        name="arl2",
        summary="ARL2: Causal Forcing with 22 of 30 layers hybrid. Its weights are announced, not out: give a path.",
        kind="hybrid by path",
        base=WAN_BASE,
        weights_repo="lky-ang/ARL2",
        licence="not known before the weights are out",
        disk_bytes=_BASE_BYTES,
        device_bytes=15_000_000_000,
        memory_note="as causal-forcing, but 0.08 GB for each latent frame kept, and 17 MB of states",
        results=(
            PublishedResult("1005 video frames, start to file", "179 s, 43 GB", "ARL2, arXiv 2605.16579"),
            PublishedResult("921 video frames against softmax", "2.26 x faster, 54 % less", "ARL2, arXiv 2605.16579"),
        ),
        notes=("Which layers are hybrid is read off the weights file.", _SHORT),
    ),
)

CARDS: Registry[ModelCard] = Registry("model", {card.name: card for card in _CARDS})
"""All named models, by name, in the order they are listed in."""


def register_card(card: ModelCard) -> None:
    """Add a named model; raises ``ConfigError`` if another one has its name."""
    CARDS.register(card.name, card)


def find_card(name: str) -> ModelCard:
    """The card of a named model; raises ``ConfigError`` if there is none, with the nearest name."""
    return CARDS.find(name)
