"""Prompt to video: text part, rollout and codec behind a call as in diffusers, and as a stream of blocks."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from arl2.bases.pipelines import BaseOutput, DiffusionPipeline
from arl2.errors import ConfigError, GeometryError
from arl2.geometry import count_blocks
from arl2.model.execution import Compile, Graphs
from arl2.model.reward_model import RewardModel
from arl2.model.settings import GenerationSettings, whole
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.assemble import load_components
from arl2.pipeline.devices import checked_device
from arl2.pipeline.folder import save_parts
from arl2.pipeline.free_memory import require_room
from arl2.pipeline.keywords import StreamKeywords, options_and_inputs
from arl2.pipeline.options import ModelSource
from arl2.pipeline.placement import NO_OTHER_OFFLOADING, check_group_options, place
from arl2.rollout.blocks import Block
from arl2.rollout.blocks import VideoBlock as VideoBlock
from arl2.rollout.frames import FramePlan
from arl2.streams.components import Components
from arl2.streams.options import SamplingOptions
from arl2.streams.request import (
    CheckedOptions,
    Inputs,
    OnStepEnd,
    check_options,
    make_request,
)
from arl2.streams.resume import resume_stream, resume_stream_bytes
from arl2.streams.state import SnapshotKind, StreamConfig
from arl2.streams.stream import Stream
from arl2.text.interface import TextPart
from arl2.video.codec import VideoCodec
from arl2.video.pixels import to_bytes
from arl2.video.saving import save_video
from arl2.video.writers import DEFAULT_FPS

logger = logging.getLogger(__name__)

OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass
class ARL2PipelineOutput(BaseOutput):
    """Result of a call.

    Attributes:
        frames: videos: for "pil" a list of PIL images a prompt; for "np" ``[B, frames, height, width, 3]`` and for
            "pt" ``[B, frames, 3, height, width]``, both in [0, 1]; for "latent" ``[B, C, latent frames, h, w]``.
        notes: sentences about what differs from the request, such as a rounded number of frames.
        fps: video frames per second.
    """

    frames: Any
    notes: tuple[str, ...] = ()
    fps: int = DEFAULT_FPS

    def _repr_html_(self) -> str | None:
        """The videos as a notebook shows them; None, which leaves it to ``repr``, for latents."""
        from arl2.video.notebook import video_html

        try:
            return "".join(video_html(frames, fps=self.fps) for frames in self.frames)
        except GeometryError:
            return None

    def save(self, path: str | Path, *, index: int = 0, scale: int = 1, overwrite: bool = False) -> None:
        """Write the video of prompt number ``index``; the rest is as for ``arl2.save_video``.

        Raises:
            ConfigError: no such prompt, or as ``arl2.save_video``.
        """
        number = whole("index", index, least=0, most=len(self.frames) - 1)
        save_video(self.frames[number], path, fps=self.fps, scale=scale, overwrite=overwrite)


class ARL2Pipeline(DiffusionPipeline):
    """Generates video from prompts, block by block.

    Args:
        transformer: predicts the flow.
        codec: latents to pixels.
        text: prompts to embeddings.
        settings: defaults of sampling; None: those of the published chunkwise students.
        verifier: reward model that chooses among several first blocks (best-of-N).
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
    def from_components(cls, loaded: Components) -> "ARL2Pipeline":
        """A pipeline of components that are loaded already."""
        return cls(loaded.transformer, loaded.codec, loaded.text, loaded.settings, loaded.verifier)

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
        vae: Path | None = None,
        text_encoder: Path | None = None,
        compile: Compile = "auto",
        cuda_graphs: Graphs = "auto",
    ) -> "ARL2Pipeline":
        """Load a named model, a folder that ``save_pretrained`` wrote, or published parts, which must fit into memory.

        Touches no network: a named model is looked for in the Hub's cache on this disk (``arl2 download NAME``).

        Args:
            pretrained_model_name_or_path: name, folder (of a pipeline or a base), or AR checkpoint.
            torch_dtype: of transformer and codec; a few parameters of the transformer are float32 in any case.
            weights, base, config, decoder: of published parts; see :class:`arl2.pipeline.options.ModelSource`.
            vae, text_encoder: files or folders to use instead of the model's or the base's.
            compile, cuda_graphs: how passes run; see :class:`arl2.model.execution.Execution`.

        Raises:
            CheckpointError: no such model, or one that is not complete.
            ConfigError: an unknown setting in ``generation.json``, or arguments that exclude each other.
            MemoryBudgetError: published parts that will not fit into memory.
        """
        model = pretrained_model_name_or_path
        source = ModelSource(
            model=model if isinstance(model, str) else str(model.absolute()),  # a Path is never a model's name
            weights=weights,
            base=base,
            vae=None if vae is None else Path(vae),
            text_encoder=None if text_encoder is None else Path(text_encoder),
            config=config,
            decoder=None if decoder is None else str(decoder),
            compile=compile,
            cuda_graphs=cuda_graphs,
        )
        return cls.from_components(load_components(source, dtype=torch_dtype))

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, variant: str | None = None
    ) -> None:
        """Write transformer, codec, text part and settings into a folder; ``push_to_hub`` uploads the same.

        Raises:
            ConfigError: another file format than safetensors, or a variant.
            CheckpointError: a component of a class that cannot be saved.
        """
        if not safe_serialization or variant is not None:
            raise ConfigError("A pipeline is saved as safetensors without variants; leave these two arguments out.")
        save_parts(self._loaded(), Path(save_directory))

    def enable_group_offload(self, onload_device: torch.device | str = "cuda", **options: Any) -> None:
        """Run on a device that the transformer is too large for: its layers wait in the machine's memory.

        Two layers are on the device at a time; one is copied there while the one before it computes. All else moves
        there and stays; ``pipe.text.to("cpu")`` keeps the text encoder off it. The bits are those without.

        Args:
            onload_device: CUDA or XPU. A CPU stands in for one, and saves nothing.
            options: as in diffusers, if they say what is done here: ``offload_type="block_level"``,
                ``num_blocks_per_group=1``, ``use_stream=True``.

        Raises:
            ConfigError: another way of offloading, a device that is not there or has no memory of its own.
        """
        check_group_options(options)
        place(self._loaded(), checked_device(str(onload_device)), offload=True)

    def enable_model_cpu_offload(self, *_: Any, **__: Any) -> None:
        """Refused: it would move the transformer in and out for every pass of every block."""
        raise ConfigError(NO_OTHER_OFFLOADING)

    def enable_sequential_cpu_offload(self, *_: Any, **__: Any) -> None:
        """Refused, as ``enable_model_cpu_offload``."""
        raise ConfigError(NO_OTHER_OFFLOADING)

    def enable_parallelism(self, *, config: object = None, ulysses_degree: int | None = None) -> None:
        """Split streams that begin from now on over several processes with a GPU each (Ulysses sequence parallelism).

        Call it on every process, once the pipeline is on its device. Each of them then makes the same calls with the
        same arguments, and gets the same blocks; each holds the whole of the weights, and of memory and of the work of
        a pass its share. Text encoder and codec are not split: of processes that show nothing, ``Stream.latents_next``
        leaves the decoding out.

        Args:
            config: ``diffusers.ContextParallelConfig(ulysses_degree=N)``; a ``mesh`` in it is used. None: as below.
            ulysses_degree: number of processes that share a stream; None: all there are. 1 ends the splitting.

        Raises:
            ConfigError: processes that were not started, heads that they do not divide, or a kind of attention that
                does not say how it splits.
        """
        self.transformer.enable_parallelism(config=config, ulysses_degree=ulysses_degree)

    @property
    def block_frames(self) -> int:
        """Latent frames denoised together."""
        return self._loaded().block_frames

    def plan_frames(self, num_frames: int) -> FramePlan:
        """The whole blocks that ``num_frames`` video frames take; ``GeometryError`` below 1."""
        return self._loaded().plan_frames(num_frames)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        options: SamplingOptions | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_block_end: Callable[["ARL2Pipeline", int, Block | VideoBlock], None] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        **keywords: Unpack[StreamKeywords],
    ) -> ARL2PipelineOutput | tuple[Any]:
        """Generate whole videos.

        Args:
            prompt: one prompt or several; each gives one video, and none depends on the others but for rounding: sums
                are taken in another order than alone, which moved latents by 2e-5 to 2.7e-2 after 161 video frames.
            options: how to sample; keywords win over it.
            callback_on_step_end: called as ``(pipeline, step, timestep, {"latents": x, "block": i})`` after every
                denoising pass; its result is not used. Of a first block with several candidates, ``x`` holds all of
                them: each prompt's first, then each prompt's second, and so on.
            callback_on_block_end: called as ``(pipeline, index, block)`` after every block.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: false returns a tuple, as in diffusers.
            keywords: the fields of :class:`SamplingOptions` and :class:`arl2.streams.request.Inputs`, explained there,
                and ``num_inference_steps`` for ``steps`` as in diffusers. ``num_frames`` that do not fill whole blocks
                are rounded up and the video is cut to what was requested; ``notes`` says so.

        Raises:
            ConfigError: no prompt, arguments that exclude each other, or options that do not go with the model.
            GeometryError: a size that fits neither codec nor patch, or conditioning latents that do not fit.
            MemoryMismatchError: a window too small for a block.
            Arl2Error: a prompt that the text part refuses.
        """
        _require_choice("output_type", output_type, get_args(OutputType))
        _require_function("callback_on_block_end", callback_on_block_end)
        options, inputs = options_and_inputs(prompt, options, keywords)
        options = replace(options, num_frames=options.num_frames or self.settings.num_frames)
        checked = self.check(options, batch=inputs.batch, known=inputs.known)
        plan = checked.plan
        assert plan is not None  # only a stream without num_frames has none
        if output_type != "latent":
            require_room(plan.video_frames * inputs.batch, checked.settings)
        stream = self._begin(options, inputs, callback_on_step_end, rewind_blocks=0, rewind_kind="light")
        decoded = []
        total = count_blocks(plan.latent_frames, self.block_frames, self.settings.first_block_frames)
        with stream, self.progress_bar(total=total) as bar:
            for _ in range(total):
                latents = stream.latents_next()
                block = latents if output_type == "latent" else stream.decode(latents)
                decoded.append(block.video.float().cpu() if isinstance(block, VideoBlock) else block.latents)
                if callback_on_block_end is not None:
                    callback_on_block_end(self, block.index, block)
                bar.update()
        frames = torch.cat(decoded, dim=2)
        result = frames if output_type == "latent" else _as_output(frames, output_type)
        notes = () if plan.note is None else (plan.note,)
        output = ARL2PipelineOutput(frames=result, notes=notes, fps=self.settings.fps)
        return output if return_dict else (result,)

    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        options: SamplingOptions | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        rewind_blocks: int = 8,
        rewind_kind: SnapshotKind = "light",
        **keywords: Unpack[StreamKeywords],
    ) -> Stream:
        """Generate block by block, each decoded as soon as it is done, in memory that does not grow (with a window).

        Arguments and errors as for the call, except that ``num_frames=None`` never ends. Arguments are checked at once,
        not at the first block. The blocks together are the video of the call: conditioning frames come first, and the
        last block is cut to the requested number of frames.

        Args:
            rewind_blocks: how many blocks ``Stream.rewind`` can go back. Each keeps one more block of latents, and:
            rewind_kind: "light": a copy of the recurrent states (0.8 MB a hybrid layer at 1.3B sizes); windows and
                decoder are warmed up from the kept latents when it is needed. "exact": everything, states, windows
                (0.9 GB there with window 12 in 8 layers) and decoder (1.9 GB of the full VAE, bf16); blocks after a
                rewind then have the same bits in every model.
        """
        rewind_blocks = whole("rewind_blocks", rewind_blocks, least=0)
        _require_choice("rewind_kind", rewind_kind, get_args(SnapshotKind))
        options, inputs = options_and_inputs(prompt, options, keywords)
        return self._begin(options, inputs, callback_on_step_end, rewind_blocks=rewind_blocks, rewind_kind=rewind_kind)

    def check(
        self,
        options: SamplingOptions | None = None,
        *,
        batch: int = 1,
        known: Float[Tensor, "batch channels known h w"] | None = None,
    ) -> CheckedOptions:
        """Refuse options that ``stream`` would refuse, without embedding a prompt or allocating memory.

        Args:
            options: how to sample.
            batch: number of prompts.
            known: conditioning latents.

        Returns:
            The settings, the sampler, the length and the memory's sizes that would be used.

        Raises:
            Arl2Error: as ``stream``, prompts aside.
        """
        return check_options(options or SamplingOptions(), self._loaded(), batch=batch, known=known)

    def resume(self, path: str | Path, *, prompt: str | Sequence[str] | None = None) -> Stream:
        """Continue a stream that ``Stream.save`` wrote, in this process or another.

        After an exact snapshot blocks have the same bits (on the same device). A light one warms up windows and decoder
        by passes over its latents first.

        Args:
            path: the snapshot.
            prompt: from the next block on; None: the one it had.

        Raises:
            SnapshotError: a damaged file, or one of another model, plan, dtype or a newer version.
            Arl2Error: a prompt that the text part refuses.
        """
        return resume_stream(Path(path), self._loaded(), prompt)

    def resume_bytes(self, data: bytes, *, prompt: str | Sequence[str] | None = None) -> Stream:
        """As ``resume``, from the bytes that ``Stream.save_bytes`` gave, or those of a file; errors as there."""
        return resume_stream_bytes(data, self._loaded(), prompt)

    def _begin(
        self,
        options: SamplingOptions,
        inputs: Inputs,
        callback: OnStepEnd | None,
        *,
        rewind_blocks: int,
        rewind_kind: SnapshotKind,
    ) -> Stream:
        def on_step(block: int, step: int, timestep: float, latents: Tensor) -> None:
            assert callback is not None
            callback(self, step, timestep, {"latents": latents, "block": block})

        _require_function("callback_on_step_end", callback)
        loaded = self._loaded()
        request = make_request(options, inputs, loaded, on_step=None if callback is None else on_step)
        if request.plan is not None and request.plan.note is not None:
            logger.info("%s", request.plan.note)
        return Stream.begin(StreamConfig(loaded, request.shape, request.plan, rewind_blocks, rewind_kind), request)

    def _loaded(self) -> Components:
        return Components(self.transformer, self.codec, self.text, self.settings, self.verifier)


def _require_choice(name: str, value: object, accepted: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in accepted:
        raise ConfigError(f"Got {name} {value!r:.80}; give one of {', '.join(accepted)}.")


def _require_function(name: str, value: object) -> None:
    if value is not None and not callable(value):
        raise ConfigError(f"Got {name} {value!r:.80}; give a function.")


def _as_output(video: Float[Tensor, "batch 3 frames height width"], kind: OutputType) -> Any:
    if kind == "pil":
        return [[Image.fromarray(frame) for frame in to_bytes(clip)] for clip in video]
    unit = ((video.clamp(-1, 1) + 1) / 2).transpose(1, 2)
    return unit if kind == "pt" else unit.permute(0, 1, 3, 4, 2).numpy()
