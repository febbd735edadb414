"""Prompt to video: text part, rollout and codec behind a call as diffusers users know it, and as a stream of blocks."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from arl2.attention.plan import SinkPositions
from arl2.errors import ConfigError
from arl2.geometry import split_blocks
from arl2.model.reward_model import RewardModel
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.folder import is_saved_pipeline, load_parts, pipeline_folder, save_parts
from arl2.rollout.blocks import Block
from arl2.rollout.blocks import VideoBlock as VideoBlock
from arl2.rollout.frames import FramePlan, plan_frames
from arl2.rollout.settings import GenerationSettings
from arl2.streams.components import Components
from arl2.streams.request import Ask, Generators, OnStepEnd, Seeds, Window, make_request, whole
from arl2.streams.resume import resume_stream
from arl2.streams.state import SnapshotKind, StreamConfig
from arl2.streams.stream import Stream
from arl2.text.interface import TextPart
from arl2.video.codec import VideoCodec
from arl2.video.pixels import to_bytes
from arl2.video.saving import save_video
from arl2.video.writers import DEFAULT_FPS

logger = logging.getLogger(__name__)

_NO_OFFLOAD = (
    "Parts of this pipeline are not offloaded: a stream needs its transformer for every pass of every block. The text "
    "encoder leaves the device by itself once a prompt is read. To take less: torch_dtype=torch.bfloat16, a window, "
    "the tiny decoder, or a smaller picture."
)

OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass
class ARL2PipelineOutput(BaseOutput):
    """What a call gives.

    Attributes:
        frames: videos: for "pil" a list of PIL images a prompt; for "np" ``[B, frames, height, width, 3]`` and for
            "pt" ``[B, frames, 3, height, width]``, both in [0, 1]; for "latent" ``[B, C, latent frames, h, w]``.
        notes: sentences about what differs from what was asked, such as a rounded number of frames.
        fps: video frames per second.
    """

    frames: Any
    notes: tuple[str, ...] = ()
    fps: int = DEFAULT_FPS

    def save(self, path: str | Path, *, index: int = 0, scale: int = 1) -> None:
        """Write the video of prompt number ``index``; see ``arl2.save_video``."""
        save_video(self.frames[index], path, fps=self.fps, scale=scale)


class ARL2Pipeline(DiffusionPipeline):
    """Generates video from prompts, block by block.

    Args:
        transformer: predicts the flow.
        codec: latents to pixels.
        text: prompts to embeddings.
        settings: how to sample; None: as the published chunkwise students.
        verifier: chooses among several first blocks, where the settings ask for several.
    """

    _optional_components = ("verifier",)

    def __init__(
        self,
        transformer: CausalWanTransformer3DModel,
        codec: VideoCodec,
        text: TextPart,
        settings: GenerationSettings | None = None,
        verifier: RewardModel | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, codec=codec, text=text, verifier=verifier)
        self.settings = settings or GenerationSettings()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype = torch.float32,
        weights: Path | None = None,
        base: Path | None = None,
        config: Path | None = None,
        decoder: Path | None = None,
    ) -> "ARL2Pipeline":
        """Load the embedded model (``"shapes"``), a folder that ``save_pretrained`` wrote, or published parts.

        Touches no network: a named model is looked for in the Hub's cache on this disk (``arl2 download NAME``).

        Args:
            pretrained_model_name_or_path: name, folder (of a pipeline or a base), or AR checkpoint.
            torch_dtype: of transformer and codec; a few parameters of the transformer are float32 in any case.
            weights, base, config, decoder: of published parts; see ``arl2.pipeline.assemble.assemble_pipeline``.

        Raises:
            CheckpointError: no such model, or one that is not whole.
            ConfigError: an unknown setting in ``generation.json``.
        """
        whole = is_saved_pipeline(pretrained_model_name_or_path)
        if not whole or any(part is not None for part in (weights, base, config, decoder)):
            from arl2.pipeline.assemble import assemble_pipeline  # it assembles pipelines: the other way round

            return assemble_pipeline(
                pretrained_model_name_or_path,
                weights=weights,
                base=base,
                config=config,
                decoder=decoder,
                torch_dtype=torch_dtype,
            )
        parts = load_parts(pipeline_folder(pretrained_model_name_or_path), dtype=torch_dtype)
        return cls(parts.transformer, parts.codec, parts.text, parts.settings, parts.verifier)

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, variant: str | None = None
    ) -> None:
        """Write transformer, codec, text part and settings into a folder; ``push_to_hub`` uploads the same.

        Raises:
            ConfigError: another file format than safetensors, or a variant, was asked.
            CheckpointError: a part of a class that cannot be saved.
        """
        if not safe_serialization or variant is not None:
            raise ConfigError("A pipeline is saved as safetensors without variants; leave these two arguments out.")
        save_parts(self._parts(), Path(save_directory))

    def enable_model_cpu_offload(self, *_: Any, **__: Any) -> None:
        """Refused: hooks of diffusers move a part in when its ``forward`` is called, and out after it.

        A stream uses the transformer for the whole of its life (text keys, memory, clean passes) and would be moved for
        every pass of every block.
        """
        raise ConfigError(_NO_OFFLOAD)

    def enable_sequential_cpu_offload(self, *_: Any, **__: Any) -> None:
        """Refused, as ``enable_model_cpu_offload``."""
        raise ConfigError(_NO_OFFLOAD)

    def enable_group_offload(self, *_: Any, **__: Any) -> None:
        """Refused, as ``enable_model_cpu_offload``."""
        raise ConfigError(_NO_OFFLOAD)

    @property
    def block_frames(self) -> int:
        """Latent frames denoised together."""
        return int(self.transformer.config.block_frames)

    def plan_frames(self, num_frames: int) -> FramePlan:
        """What is generated for so many video frames; raises ``GeometryError`` below 1."""
        return plan_frames(
            whole("num_frames", num_frames),
            temporal_factor=self.codec.temporal_factor,
            block_frames=self.block_frames,
            first_block_frames=self.settings.first_block_frames,
        )

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: Seeds = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        steps: int | Sequence[int] | None = None,
        first_block_candidates: int | None = None,
        window: Window = "settings",
        sink: int | None = None,
        sink_positions: SinkPositions | None = None,
        known: Float[Tensor, "batch channels known h w"] | None = None,
        negative_prompt: str | None = None,
        guidance_scale: float | None = None,
        prompt_embeds: Float[Tensor, "batch words width"] | None = None,
        negative_prompt_embeds: Float[Tensor, "negatives words width"] | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_block_end: Callable[["ARL2Pipeline", int, Block | VideoBlock], None] | None = None,
    ) -> ARL2PipelineOutput | tuple[Any]:
        """Generate whole videos.

        Args:
            prompt: one prompt or several; each gives one video, and none depends on the others.
            num_frames: video frames, known ones included; None: as the settings say. A number that does not fill
                whole blocks is rounded up for the work and the video cut to what was asked; ``notes`` says so.
            height, width: of the picture in pixels; None: as the settings say.
            seed: of the first prompt, the next ones have ``seed + 1`` and so on; or one for each. None is 0.
            generator: instead of seeds, as in diffusers: seeds are drawn from it, or from one for each prompt.
            num_inference_steps: denoising steps of a block, spread evenly, instead of the settings' own.
            steps: the same; or a list, such as ``(1000, 500)``.
            first_block_candidates: first blocks drawn side by side, of which the verifier keeps one; None: as the
                settings say, 1: the first block is drawn once.
            window: latent frames that softmax layers see; None the whole past, "settings" as these say.
            sink: first latent frames that the window never evicts; None: as the model's config says.
            sink_positions: "absolute" or "relative": whether sinks stay at their own frames or move with the window;
                None: as the model's config says.
            known: latents that the videos start with, in whole blocks.
            negative_prompt, guidance_scale: of multi-step models; None: as the settings say.
            prompt_embeds, negative_prompt_embeds: what the text part would give, instead of prompts.
            callback_on_step_end: called as ``(pipeline, step, timestep, {"latents": x, "block": i})`` after every
                denoising pass; what it returns is not used. Of a first block, ``x`` holds all candidates: each
                prompt's first, then each prompt's second, and so on.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: false returns a tuple, as in diffusers.
            callback_on_block_end: called as ``(pipeline, index, block)`` after every block.

        Raises:
            ConfigError: no prompt, arguments that exclude each other, or steps that cannot be.
            GeometryError: a picture that fits neither codec nor patch, no frames, or known latents that do not fit.
            MemoryMismatchError: a window too small for a block.
            Arl2Error: a prompt that the text part refuses.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ConfigError(f'output_type is {output_type!r}; use "pil", "np", "pt" or "latent".')
        num_frames = self.settings.num_frames if num_frames is None else num_frames
        stream = self.stream(
            prompt,
            num_frames=num_frames,
            height=height,
            width=width,
            seed=seed,
            generator=generator,
            num_inference_steps=num_inference_steps,
            steps=steps,
            first_block_candidates=first_block_candidates,
            window=window,
            sink=sink,
            sink_positions=sink_positions,
            known=known,
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            callback_on_step_end=callback_on_step_end,
            rewind_blocks=0,
        )
        plan = self.plan_frames(num_frames)
        pieces = []
        total = len(split_blocks(plan.latent_frames, self.block_frames, self.settings.first_block_frames))
        with stream, self.progress_bar(total=total) as bar:
            for _ in range(total):
                made = stream.latents_next()
                block = made if output_type == "latent" else stream.decode(made)
                pieces.append(block.video.float().cpu() if isinstance(block, VideoBlock) else block.latents)
                if callback_on_block_end is not None:
                    callback_on_block_end(self, block.index, block)
                bar.update()
        frames = torch.cat(pieces, dim=2)
        result = frames if output_type == "latent" else _as_output(frames, output_type)
        notes = () if plan.note is None else (plan.note,)
        output = ARL2PipelineOutput(frames=result, notes=notes, fps=self.settings.fps)
        return output if return_dict else (result,)

    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: Seeds = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        steps: int | Sequence[int] | None = None,
        first_block_candidates: int | None = None,
        window: Window = "settings",
        sink: int | None = None,
        sink_positions: SinkPositions | None = None,
        known: Float[Tensor, "batch channels known h w"] | None = None,
        negative_prompt: str | None = None,
        guidance_scale: float | None = None,
        prompt_embeds: Float[Tensor, "batch words width"] | None = None,
        negative_prompt_embeds: Float[Tensor, "negatives words width"] | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        rewind_blocks: int = 8,
        rewind_kind: SnapshotKind = "light",
    ) -> Stream:
        """Generate block by block, each decoded as soon as it is done, in memory that does not grow (with a window).

        Arguments and errors as for the call, but ``num_frames=None`` goes on for ever. What is wrong with the
        arguments is said at once, not at the first block. The blocks together are the video of the call: known
        latents come first, decoded, and the last block is cut to what was asked.

        Args:
            rewind_blocks: how many blocks ``Stream.rewind`` can go back. Each costs one more block of latents, and:
            rewind_kind: "light": a copy of the recurrent states (0.8 MB a hybrid layer at 1.3B sizes; windows and
                decoder are filled again from the kept latents when it comes to it). "exact": of everything, states,
                windows (0.9 GB there with window 12 in 8 layers) and decoder (1.9 GB of the full VAE, bf16); what
                follows a rewind then has the same bits in every model.
        """
        ask = Ask(
            prompt=prompt,
            num_frames=num_frames,
            height=height,
            width=width,
            seed=seed,
            generator=generator,
            num_inference_steps=num_inference_steps,
            steps=steps,
            first_block_candidates=first_block_candidates,
            window=window,
            sink=sink,
            sink_positions=sink_positions,
            known=known,
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        rewind_blocks = whole("number of rewind_blocks", rewind_blocks)
        if rewind_blocks < 0 or rewind_kind not in ("light", "exact"):
            raise ConfigError(
                f'Rewinding is by 0 blocks or more, "light" or "exact"; got {rewind_blocks} and {rewind_kind!r}.'
            )
        plan = None if num_frames is None else self.plan_frames(num_frames)
        if plan is not None and plan.note is not None:
            logger.info("%s", plan.note)

        def on_step(block: int, step: int, timestep: float, latents: Tensor) -> None:
            assert callback_on_step_end is not None
            callback_on_step_end(self, step, timestep, {"latents": latents, "block": block})

        parts = self._parts()
        request = make_request(ask, parts, plan=plan, on_step=None if callback_on_step_end is None else on_step)
        return Stream.begin(StreamConfig(parts, request.shape, plan, rewind_blocks, rewind_kind), request)

    def resume(self, path: str | Path, *, prompt: str | Sequence[str] | None = None) -> Stream:
        """Go on with a stream that ``Stream.save`` wrote, in this process or another.

        An exact snapshot goes on with the same bits (on the same device). A light one fills windows and decoder by
        passes over its latents first.

        Args:
            path: the snapshot.
            prompt: from the next block on; None: the one it had. The text part is used for this alone.

        Raises:
            SnapshotError: a damaged file, or one of another model, plan, dtype or a newer version.
            Arl2Error: a prompt that the text part refuses.
        """
        stream = resume_stream(Path(path), self._parts(), self.plan_frames)
        if prompt is not None:
            stream.change_prompt(prompt)
        return stream

    def _parts(self) -> Components:
        return Components(self.transformer, self.codec, self.text, self.settings, self.verifier)


def _as_output(video: Float[Tensor, "batch 3 frames height width"], kind: OutputType) -> Any:
    if kind == "pil":
        return [[Image.fromarray(frame) for frame in to_bytes(clip)] for clip in video]
    unit = ((video.clamp(-1, 1) + 1) / 2).transpose(1, 2)
    return unit if kind == "pt" else unit.permute(0, 1, 3, 4, 2).numpy()
