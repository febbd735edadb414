"""What a call of the pipeline asks for, and the same checked and embedded, ready for the rollout."""

import logging
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arl2.attention.memory import Memory
from arl2.attention.plan import SinkPositions
from arl2.errors import ConfigError, GeometryError
from arl2.geometry import split_blocks
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.rollout.best_of import BestOf, best_of
from arl2.rollout.denoise import RolloutSettings
from arl2.rollout.frames import FramePlan
from arl2.rollout.noise import SeededNoise
from arl2.rollout.samplers import MultiStep, OnStep, Sampler, Watched
from arl2.rollout.settings import GenerationSettings
from arl2.streams.components import Components
from arl2.streams.recent import Prompts
from arl2.text.interface import TextPart

logger = logging.getLogger(__name__)

Window = int | Literal["settings"] | None
Seeds = int | Sequence[int] | None
Generators = torch.Generator | Sequence[torch.Generator] | None
OnStepEnd = Callable[[Any, int, float, dict[str, Any]], Any]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """The arguments of ``ARL2Pipeline.stream``; see there."""

    prompt: str | Sequence[str] | None
    num_frames: int | None
    height: int | None
    width: int | None
    seed: Seeds
    generator: Generators
    num_inference_steps: int | None
    steps: int | Sequence[int] | None
    first_block_candidates: int | None
    window: Window
    sink: int | None
    sink_positions: SinkPositions | None
    known: Tensor | None
    negative_prompt: str | None
    guidance_scale: float | None
    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None


@dataclass(frozen=True)
class MemoryShape:
    """What a stream's memory is allocated with, besides the model's sizes.

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

    def allocate(self, transformer: CausalWanTransformer3DModel) -> Memory:
        """Empty memory.

        Raises:
            ConfigError: unknown sink positions.
            GeometryError: a latent size that does not fit the patch.
            MemoryMismatchError: a window too small for the sinks and one block.
        """
        return transformer.allocate_memory(
            batch=self.batch,
            height=self.height,
            width=self.width,
            window=self.window,
            sink=self.sink,
            sink_positions=self.sink_positions,
        )


@dataclass(frozen=True)
class Request:
    """A call, checked, its prompts embedded, its memory allocated: one, or two under guidance."""

    prompts: Prompts
    noise: SeededNoise
    settings: RolloutSettings
    plan: FramePlan | None
    shape: MemoryShape
    memories: tuple[Memory, ...]
    known: Float[Tensor, "batch channels known h w"] | None


def make_request(ask: Ask, parts: Components, *, plan: FramePlan | None, on_step: OnStep | None) -> Request:
    """Check everything before the first pass; errors as said at ``ARL2Pipeline.stream``."""
    ask, transformer, settings = _plain(ask), parts.transformer, parts.settings
    if ask.num_inference_steps is not None and ask.steps is not None:
        raise ConfigError("Both num_inference_steps and steps came; give one of them.")
    sampler = settings.sampler(ask.num_inference_steps if ask.steps is None else ask.steps)
    if ask.guidance_scale is not None and ask.guidance_scale != sampler.guidance_scale:
        if not isinstance(sampler, MultiStep):
            raise ConfigError(
                f"guidance_scale is {ask.guidance_scale}, but this model is a few-step student whose guidance is "
                "inside; leave guidance_scale out."
            )
        sampler = replace(sampler, guidance_scale=ask.guidance_scale)
    height, width = _latent_size(ask, parts)
    with torch.no_grad():
        embedded = _embedded(ask.prompt, ask.prompt_embeds, parts.text, "prompt")
        batch = embedded.shape[0]
        negative = _negative(ask, sampler, parts.text, settings, batch)
    texts = (embedded,) if negative is None else (embedded, negative)
    if ask.known is not None:
        _check_known(ask.known, batch, plan, int(transformer.config.block_frames), settings.first_block_frames)
    window = settings.window if ask.window == "settings" else ask.window
    sink = (transformer.config.sink if window is not None else 0) if ask.sink is None else ask.sink
    sink_positions = transformer.config.sink_positions if ask.sink_positions is None else ask.sink_positions
    shape = MemoryShape(batch, height, width, window, sink, sink_positions)
    watched = sampler if on_step is None else Watched(sampler, on_step)
    return Request(
        prompts=Prompts(ask.prompt if ask.prompt is None or isinstance(ask.prompt, str) else tuple(ask.prompt), texts),
        noise=SeededNoise(seeds_of(ask.seed, ask.generator, batch)),
        settings=RolloutSettings(
            watched,
            height,
            width,
            settings.first_block_frames,
            settings.context_noise,
            _best_of(ask, parts, height, width),
        ),
        plan=plan,
        shape=shape,
        memories=tuple(shape.allocate(transformer) for _ in texts),
        known=None if ask.known is None else ask.known.to(transformer.patch_embedding.weight.device),
    )


def whole(name: str, given: int) -> int:
    """A whole number of Python's own, whichever library it came from: a snapshot holds no other.

    Raises:
        ConfigError: not a whole number.
    """
    try:
        return operator.index(given)
    except TypeError as error:
        raise ConfigError(f"The {name} is {given!r:.80}; give a whole number.") from error


def _plain(ask: Ask) -> Ask:
    """The same with numbers of Python's own."""
    try:
        scale = None if ask.guidance_scale is None else float(ask.guidance_scale)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The guidance_scale is {ask.guidance_scale!r:.80}; give a number.") from error
    return replace(
        ask,
        height=None if ask.height is None else whole("height", ask.height),
        width=None if ask.width is None else whole("width", ask.width),
        first_block_candidates=(
            None
            if ask.first_block_candidates is None
            else whole("number of first_block_candidates", ask.first_block_candidates)
        ),
        window=ask.window if ask.window is None or isinstance(ask.window, str) else whole("window", ask.window),
        sink=None if ask.sink is None else whole("sink", ask.sink),
        guidance_scale=scale,
        num_inference_steps=_plain_steps(ask.num_inference_steps),
        steps=_plain_steps(ask.steps),
    )


def _plain_steps(steps: Any) -> Any:
    """Numbers of numpy as Python's own; what they may be, the settings say."""
    if isinstance(steps, np.ndarray | np.generic):
        return steps.tolist()
    return [_plain_steps(one) for one in steps] if isinstance(steps, list | tuple) else steps


def _latent_size(ask: Ask, parts: Components) -> tuple[int, int]:
    def side(name: str, pixels: int, axis: int) -> int:
        factor = parts.codec.spatial_factor
        step = factor * int(parts.transformer.config.patch_size[axis])
        if pixels < step or pixels % step:
            nearest = max(step, round(pixels / step) * step)
            raise GeometryError(f"The {name} is {pixels} pixels; give a multiple of {step}, such as {nearest}.")
        return pixels // factor

    settings = parts.settings
    return side("height", ask.height or settings.height, 1), side("width", ask.width or settings.width, 2)


def _best_of(ask: Ask, parts: Components, height: int, width: int) -> BestOf | None:
    settings, asked = parts.settings, ask.first_block_candidates
    candidates = settings.first_block_candidates if asked is None else asked
    if candidates < 1:
        raise ConfigError(f"{candidates} candidates of the first block were asked; give 1 or more.")
    config = parts.transformer.config
    frames = settings.first_block_frames or config.block_frames
    drawn = (config.in_channels, frames, height, width)
    if ask.known is not None:
        return None  # the first block is given
    if parts.verifier is not None and candidates > 1 and parts.verifier.block_shape != drawn:
        said = f"The verifier reads first blocks of {list(parts.verifier.block_shape)}, and these are {list(drawn)}"
        if asked is not None:
            raise ConfigError(f"{said} (channels, frames, height, width); leave first_block_candidates out.")
        logger.warning("%s: the first block is drawn once, not %d times.", said, candidates)
        return None
    return best_of(parts.verifier, candidates)


def _embedded(prompt: str | Sequence[str] | None, given: Tensor | None, text: TextPart, name: str) -> Tensor:
    if (prompt is None) == (given is None):
        raise ConfigError(f"Give either {name} or {name}_embeds, one of the two.")
    if given is not None:
        if given.dim() != 3 or not len(given):
            raise ConfigError(f"{name}_embeds are {list(given.shape)}; batch (1 or more), rows, width are needed.")
        return given
    assert prompt is not None
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ConfigError("The list of prompts is empty; give at least one.")
    return text.encode(prompts)


def _negative(ask: Ask, sampler: Sampler, text: TextPart, settings: GenerationSettings, batch: int) -> Tensor | None:
    if sampler.guidance_scale == 1.0:
        if ask.negative_prompt is not None or ask.negative_prompt_embeds is not None:
            raise ConfigError("A negative prompt came, but nothing guides here (guidance scale 1); leave it out.")
        return None
    prompt = ask.negative_prompt
    if prompt is None and ask.negative_prompt_embeds is None:
        prompt = settings.negative_prompt
    if prompt is not None and not prompt.strip():
        raise ConfigError(
            f"Guidance (scale {sampler.guidance_scale:g}) leads away from a negative prompt, and it is empty; give "
            "negative_prompt, negative_prompt_embeds, or guidance_scale=1."
        )
    one = _embedded(prompt, ask.negative_prompt_embeds, text, "negative_prompt")
    return one.expand(batch, -1, -1) if len(one) == 1 else one


def _check_known(known: Tensor, batch: int, plan: FramePlan | None, block_frames: int, first: int | None) -> None:
    if known.shape[0] != batch:
        raise GeometryError(f"Known latents of {known.shape[0]} videos came with {batch} prompts; give one each.")
    split_blocks(known.shape[2], block_frames, first)
    if plan is not None and known.shape[2] >= plan.latent_frames:
        raise GeometryError(
            f"{known.shape[2]} latent frames are known and {plan.latent_frames} asked in all; ask for more."
        )


def seeds_of(seed: Seeds, generator: Generators, batch: int) -> list[int]:
    """One seed a prompt.

    Raises:
        ConfigError: both came, seeds that are not whole numbers from 0, or another number of them than prompts.
    """
    if seed is not None and generator is not None:
        raise ConfigError("Both a seed and a generator came; give one of them.")
    if generator is not None:
        generators = [generator] * batch if isinstance(generator, torch.Generator) else list(generator)
        drawn = [int(torch.randint(2**63 - 1, (), generator=one, device=one.device)) for one in generators]
        return _one_each(drawn, batch, "generators")
    if seed is None or not np.iterable(seed):
        return list(SeededNoise.for_batch(_from_zero(whole("seed", 0 if seed is None else seed)), batch).seeds)
    return _one_each([_from_zero(whole("seed", one)) for one in seed], batch, "seeds")


def _from_zero(seed: int) -> int:
    if seed < 0:
        raise ConfigError(f"The seed is {seed}; give a whole number from 0.")
    return seed


def _one_each(given: list[int], batch: int, what: str) -> list[int]:
    if len(given) != batch:
        raise ConfigError(f"{len(given)} {what} came for {batch} prompts; give one each.")
    return given
