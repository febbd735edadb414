"""From sampling options to a stream that can start: checked against the model, prompts embedded, memory allocated.

:func:`check_options` is the pure half: it embeds, allocates and logs nothing, so a command or a server can refuse a job
before it opens a file. :func:`make_request` does the rest.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.attention.memory import Memory
from arl2.attention.plan import SinkPositions
from arl2.errors import ConfigError, GeometryError, MemoryMismatchError, NonFiniteError
from arl2.geometry import split_blocks
from arl2.model.settings import GenerationSettings
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.rollout.best_of import BestOf, best_of
from arl2.rollout.frames import FramePlan
from arl2.rollout.noise import SeededNoise
from arl2.rollout.samplers import OnStep, Sampler
from arl2.rollout.settings import RolloutSettings
from arl2.streams.components import Components
from arl2.streams.options import SamplingOptions, Seeds, plain_seeds
from arl2.streams.options import Window as Window
from arl2.streams.recent import Prompts
from arl2.text.interface import TextPart, encode_negative

Generators = torch.Generator | Sequence[torch.Generator] | None
OnStepEnd = Callable[[Any, int, float, dict[str, Any]], Any]


logger = logging.getLogger(__name__)

_LARGEST_SIDE = 16384  # pixels, of what the formats of video take


class InputKeywords(TypedDict, total=False):
    """The fields of :class:`Inputs` but the prompt, as keywords of the pipeline."""

    prompt_embeds: Float[Tensor, "batch words width"] | None
    negative_prompt_embeds: Float[Tensor, "negatives words width"] | None
    known: Float[Tensor, "batch channels known h w"] | None
    generator: Generators


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What videos are sampled from, as far as it is no plain value.

    Attributes:
        prompt: One prompt or several; each gives one video, independent of the others.
        prompt_embeds, negative_prompt_embeds: What the text part would give, instead of prompts.
        known: Conditioning latents that the videos start with, in whole blocks.
        generator: Instead of seeds, as in diffusers: one for all prompts, or one for each.
    """

    prompt: str | Sequence[str] | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    known: Tensor | None = None
    generator: Generators = None

    @property
    def batch(self) -> int:
        """Number of videos; ``ConfigError`` unless either prompts or embeddings are given."""
        _check_inputs(self)
        if (self.prompt is None) == (self.prompt_embeds is None):
            got = "neither" if self.prompt is None else "both"
            raise ConfigError(f"Got {got} of prompt and prompt_embeds; give one of the two.")
        if self.prompt_embeds is not None:
            _check_embeds("prompt_embeds", self.prompt_embeds)
            return len(self.prompt_embeds)
        count = len(prompt_list(self.prompt))
        if not count:
            raise ConfigError("The list of prompts is empty; give at least one.")
        return count


def prompt_list(prompt: Any) -> list[str]:
    """One prompt or several as a list; ``ConfigError`` for anything else."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes) or not all(isinstance(p, str) for p in prompt):
        raise ConfigError(f"Got prompt {prompt!r:.80}; give text, or a list of texts (one video each).")
    return list(prompt)


def _check_inputs(inputs: Inputs) -> None:
    """Refuse what is no input at all; whether it fits the model is checked with the model."""
    if inputs.prompt is not None:
        prompt_list(inputs.prompt)
    for name in ("prompt_embeds", "negative_prompt_embeds", "known"):
        value = getattr(inputs, name)
        if value is not None and not (isinstance(value, Tensor) and value.is_floating_point()):
            raise ConfigError(f"Got {name} {_kind_of(value)}; give a tensor of floating-point numbers.")
    generator = inputs.generator
    if generator is not None and not isinstance(generator, torch.Generator):
        several = isinstance(generator, Sequence) and all(isinstance(one, torch.Generator) for one in generator)
        if not several:
            raise ConfigError(f"Got generator {_kind_of(generator)}; give a torch.Generator, or a list of them.")


def _kind_of(value: Any) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"{value!r:.80}"


@dataclass(frozen=True)
class MemoryShape:
    """What a stream's memory is allocated with, in addition to the model's sizes.

    Attributes:
        batch: streams side by side.
        height, width: latent size.
        window, sink, sink_positions: of the softmax layers.
    """

    batch: int
    height: int
    width: int
    window: int | None
    sink: int
    sink_positions: SinkPositions

    def check(self, block_frames: int) -> None:
        """Raise ``MemoryMismatchError`` for a window that cannot hold the sinks and one block."""
        if self.window is not None and self.window < self.sink + block_frames:
            raise MemoryMismatchError(
                f"Got a window of {self.window} frames, {self.sink} of them sinks, for blocks of {block_frames}; use "
                f"at least {self.sink + block_frames}."
            )

    def allocate(self, transformer: CausalWanTransformer3DModel) -> Memory:
        """Empty memory; errors as for ``allocate_memory`` of the transformer."""
        return transformer.allocate_memory(
            batch=self.batch,
            height=self.height,
            width=self.width,
            window=self.window,
            sink=self.sink,
            sink_positions=self.sink_positions,
        )


@dataclass(frozen=True)
class CheckedOptions:
    """Sampling options that fit a model.

    Attributes:
        settings: the model's, the options in their place.
        sampler: of these settings.
        plan: the length; None for a continuous stream.
        shape: of the memory.
        best_of: how the first block is chosen; None: it is a single sample.
        warnings: why the settings' candidates are not used, and that the size is not the model's.
    """

    settings: GenerationSettings
    sampler: Sampler
    plan: FramePlan | None
    shape: MemoryShape
    best_of: BestOf | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """A stream that can start: its prompts embedded, its memory allocated (one, or two under guidance)."""

    prompts: Prompts
    noise: SeededNoise
    settings: RolloutSettings
    plan: FramePlan | None
    shape: MemoryShape
    memories: tuple[Memory, ...]
    known: Float[Tensor, "batch channels known h w"] | None


def check_options(
    options: SamplingOptions, components: Components, *, batch: int, known: Tensor | None = None
) -> CheckedOptions:
    """Hold options against a model: nothing is embedded, allocated or logged.

    Raises:
        ConfigError: options that do not go with the model, or another number of seeds than ``batch``.
        GeometryError: a size that fits neither codec nor patch, or conditioning latents that do not fit.
        MemoryMismatchError: a window too small for a block.
        NonFiniteError: NaN or infinity in the conditioning latents.
    """
    settings, config = options.over(components.settings), components.transformer.config
    height = _latent_side("height", settings.height, 1, components)
    width = _latent_side("width", settings.width, 2, components)
    seeds_of(options.seed, None, batch)
    if options.negative_prompt and settings.guidance_scale == 1.0:
        raise ConfigError(
            f"Got negative_prompt {options.negative_prompt!r:.80}, but guidance is off (guidance_scale 1); leave it "
            "out, or raise guidance_scale of a multi-step model."
        )
    sink = (config.sink if settings.window is not None else 0) if options.sink is None else options.sink
    shape = MemoryShape(batch, height, width, settings.window, sink, options.sink_positions or config.sink_positions)
    shape.check(components.block_frames)
    plan = None if options.num_frames is None else components.plan_frames(options.num_frames)
    if known is not None:
        if known.dim() != 5:
            raise GeometryError(
                f"Got known latents of {list(known.shape)}; give [batch, channels, frames, height, width]."
            )
        expected = [batch, config.in_channels, known.shape[2], height, width]
        _check_known(known, expected, plan, components.block_frames, settings.first_block_frames)
    chosen, warning = _best_of(options, settings, components, shape, known is not None)
    told = tuple(
        said
        for said in (components.settings.told_of_size(settings.height, settings.width), warning)
        if said is not None
    )
    return CheckedOptions(settings, settings.sampler(), plan, shape, chosen, told)


def make_request(
    options: SamplingOptions, inputs: Inputs, components: Components, *, on_step: OnStep | None = None
) -> Request:
    """Check everything, then embed the prompts and allocate memory; ``on_step`` follows every denoising pass.

    Raises:
        Arl2Error: as ``check_options``, or a prompt that the text part refuses.
    """
    batch = inputs.batch
    checked = check_options(options, components, batch=batch, known=inputs.known)
    seeds = seeds_of(options.seed, inputs.generator, batch)
    with torch.no_grad():
        texts = _texts(options, inputs, checked.settings, components.text, batch)
    for sentence in checked.warnings:
        logger.warning("%s", sentence)
    shape, transformer = checked.shape, components.transformer
    prompt = inputs.prompt
    return Request(
        prompts=Prompts(prompt if prompt is None or isinstance(prompt, str) else tuple(prompt), texts),
        noise=SeededNoise(seeds),
        settings=RolloutSettings(
            checked.sampler,
            shape.height,
            shape.width,
            checked.settings.first_block_frames,
            checked.settings.context_noise,
            checked.best_of,
            on_step,
        ),
        plan=checked.plan,
        shape=shape,
        memories=tuple(shape.allocate(transformer) for _ in texts),
        known=None if inputs.known is None else inputs.known.to(transformer.patch_embedding.weight.device),
    )


def seeds_of(seed: Seeds, generator: Generators, batch: int) -> list[int]:
    """One seed for each prompt.

    Raises:
        ConfigError: both are given, a seed outside 0 to 2**64 - 1, or another number of them than prompts.
    """
    if seed is not None and generator is not None:
        raise ConfigError("Got both seed and generator; give one of them.")
    if generator is not None:
        generators = [generator] * batch if isinstance(generator, torch.Generator) else list(generator)
        sampled = [int(torch.randint(2**63 - 1, (), generator=one, device=one.device)) for one in generators]
        return _one_each(sampled, batch, "generators")
    given = plain_seeds(0 if seed is None else seed)
    return (
        list(SeededNoise.for_batch(given, batch).seeds) if isinstance(given, int) else _one_each(given, batch, "seeds")
    )


def _one_each(given: Sequence[int], batch: int, what: str) -> list[int]:
    if len(given) != batch:
        raise ConfigError(f"Got {len(given)} {what} for {batch} prompts; give one each.")
    return list(given)


def _latent_side(name: str, pixels: int, axis: int, components: Components) -> int:
    if pixels > _LARGEST_SIDE:
        raise GeometryError(f"Got {name} {pixels}; give at most {_LARGEST_SIDE} pixels.")
    factor = components.codec.spatial_factor
    step = factor * int(components.transformer.config.patch_size[axis])
    if pixels < step or pixels % step:
        nearest = max(step, round(pixels / step) * step)
        raise GeometryError(f"Got {name} {pixels}; give a multiple of {step}, such as {nearest}.")
    return pixels // factor


def _best_of(
    options: SamplingOptions, settings: GenerationSettings, components: Components, shape: MemoryShape, is_known: bool
) -> tuple[BestOf | None, str | None]:
    """How the first block is chosen, and a warning where the settings' own number of candidates cannot be used."""
    candidates, reward_model = settings.first_block_candidates, components.verifier
    if is_known:  # the first block is given
        if (options.first_block_candidates or 1) == 1:
            return None, None
        return None, (
            f"first_block_candidates {options.first_block_candidates} has no effect: the video starts with given "
            "frames, and candidates are for a first block that only follows the prompt."
        )
    frames = settings.first_block_frames or components.block_frames
    block = (components.transformer.config.in_channels, frames, shape.height, shape.width)
    if reward_model is not None and candidates > 1 and reward_model.block_shape != block:
        misfit = (
            f"The reward model scores first blocks of {list(reward_model.block_shape)} (channels, frames, height, "
            f"width), and these are {list(block)}"
        )
        if options.first_block_candidates is not None:
            raise ConfigError(f"{misfit}; leave first_block_candidates out.")
        return None, f"{misfit}: the first block is a single sample, not the best of {candidates}."
    return best_of(reward_model, candidates), None


def _texts(
    options: SamplingOptions, inputs: Inputs, settings: GenerationSettings, text: TextPart, batch: int
) -> tuple[Tensor, ...]:
    """Embeddings of the prompts; under guidance, of the negative prompts, too."""
    embeds, prompt, negative = inputs.prompt_embeds, inputs.prompt, inputs.negative_prompt_embeds
    if negative is not None:
        _check_embeds("negative_prompt_embeds", negative)
        if settings.guidance_scale == 1.0:
            raise ConfigError("Got negative_prompt_embeds, but guidance is off (guidance_scale 1); leave them out.")
        if options.negative_prompt is not None:
            raise ConfigError("Got both negative_prompt and negative_prompt_embeds; give one of them.")
    if embeds is None:
        assert prompt is not None  # Inputs.batch requires one of the two
        embeds = text.encode([prompt] if isinstance(prompt, str) else list(prompt))
    if settings.guidance_scale == 1.0:
        return (embeds,)
    if negative is None:
        negative = encode_negative(text, settings.negative_prompt)
    return embeds, negative.expand(batch, -1, -1) if len(negative) == 1 else negative


def _check_embeds(name: str, embeds: Tensor) -> None:
    if embeds.dim() != 3 or not len(embeds):
        raise ConfigError(f"Got {name} of {list(embeds.shape)}; give [batch (1 or more), tokens, width].")


def _check_known(
    known: Tensor, expected: list[int], plan: FramePlan | None, block_frames: int, first_block_frames: int | None
) -> None:
    if known.shape[0] != expected[0]:
        raise GeometryError(f"Got known latents of {known.shape[0]} videos for {expected[0]} prompts; give one each.")
    if list(known.shape) != expected:
        raise GeometryError(f"Got known latents of {list(known.shape)}; this stream needs {expected}.")
    split_blocks(known.shape[2], block_frames, first_block_frames)
    if plan is not None and known.shape[2] >= plan.latent_frames:
        raise GeometryError(
            f"Got {known.shape[2]} known latent frames of {plan.latent_frames} in all; ask for more video frames."
        )
    if not bool(torch.isfinite(known).all()):
        raise NonFiniteError("The known latents contain NaN or infinity; check the encoded image or video.")
