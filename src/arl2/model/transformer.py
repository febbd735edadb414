"""The causal Wan transformer: Wan 2.1 made autoregressive over blocks, each layer softmax or hybrid by plan.

Legend: B batch, C channels, F frames, h x w latent size, S tokens a frame, T = F S tokens, d width.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from arl2.attention.cost import HeadSize
from arl2.attention.cross import CrossAttentionCache
from arl2.attention.folded import refresh_folded
from arl2.attention.layout import ClipLayout
from arl2.attention.memory import Memory, MemoryGeometry, ModelIdentity
from arl2.attention.plan import all_kinds
from arl2.bases.models import ConfigMixin, ModelMixin, register_to_config
from arl2.errors import ConfigError, GeometryError, MemoryMismatchError
from arl2.files.modes import open_to_readers
from arl2.geometry import SinkPositions, split_blocks, token_grid
from arl2.kernels.backends import keeping_backends
from arl2.kernels.rope import Rotation
from arl2.model.config import check_config, check_sink_positions, ffn_rank_beside, layer_specs
from arl2.model.embeddings import TextEmbedder, TimeEmbedder
from arl2.model.inference import InferenceSettings
from arl2.model.inputs import checked_latents
from arl2.model.layer import FlowHead, TransformerLayer, modulations_of
from arl2.model.offload import LayerStack
from arl2.model.passes import ParallelPass, TeacherForcing
from arl2.model.runner import StreamedBlock

# Stored in every config beside our own settings. The Wan transformer of diffusers takes any config, and would come with
# random weights in its 40 default layers and no more than a warning; this is no number of layers, so it stops.
FOR_OTHER_READERS = {"num_layers": "see layer_plan; read with arl2.CausalWanTransformer3DModel or arl2.ARL2Pipeline"}


class PromptCache(NamedTuple):
    """A prompt as the layers see it: cross-attention keys and values of every layer, made once per prompt.

    Attributes:
        owner: the model that made it; another one refuses it.
        layers: keys and values, one pair a layer.
    """

    owner: ModelIdentity
    layers: tuple[CrossAttentionCache, ...]

    @property
    def batch(self) -> int:
        """Prompts in the batch."""
        return self.layers[0].k.shape[0]

    def repeated(self, count: int) -> "PromptCache":
        """The whole batch ``count`` times, one after the other."""
        return PromptCache(self.owner, tuple(layer.repeated(count) for layer in self.layers))


class _Float32Names:
    """Parts of names of parameters that stay float32: small, and rounding them moves everything after them.

    Read as a class attribute, as diffusers does; kinds of attention that were registered later are in it, too.
    """

    _OWN = ("time_embedder", "modulation", "cross_norm", "norm_q", "norm_k")

    def __get__(self, instance: object, owner: type) -> list[str]:
        return [*self._OWN, *(name for kind in all_kinds() for name in kind.float32)]


class CausalWanTransformer3DModel(InferenceSettings, ModelMixin, ConfigMixin):
    """Predicts the flow ``v = noise - x0`` of video latents, block after block.

    Args:
        layer_plan: one letter a layer: ``H`` hybrid, ``S`` softmax, or a kind that was registered.
        num_attention_heads, attention_head_dim: their product is the width ``d``.
        ffn_dim: hidden size of the feed-forward.
        in_channels, out_channels: latent channels.
        patch_size: of a token (frames, rows, columns); the frame size is 1.
        freq_dim: sinusoids of the timestep.
        text_dim, text_len: width and number of rows of the text embeddings.
        block_frames: latent frames denoised together.
        window: frames visible to softmax layers, current block included; None sees the whole past.
        sink: first frames of the stream that the window never evicts.
        sink_positions: ``"absolute"`` or ``"relative"``: sinks stay at their own frames or move with the window.
        state_rank, ffn_rank: of the LoRAs of the state branch and of the feed-forward; 0 for none.
        low_rank_alpha: both are scaled by ``alpha / rank``; None is twice the rank.
        ffn_rank_layers: ``"hybrid"`` or ``"all"``: which layers' feed-forward has a LoRA.
        state_form: of windowed hybrid layers, what differs from the defaults of
            :class:`arl2.attention.state_form.StateForm`.
        state_horizon: latent frames that states reach back, a multiple of two blocks; None reaches the first frame, as
            published (see :mod:`arl2.attention.horizon`).
        eps: of all norms.

    Raises:
        ConfigError: a plan, window or size that cannot be.
    """

    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules = _Float32Names()
    _no_split_modules = ["TransformerLayer"]  # noqa: RUF012
    _repeated_blocks = ["TransformerLayer"]  # noqa: RUF012

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        layer_plan: str,
        num_attention_heads: int,
        attention_head_dim: int,
        ffn_dim: int,
        in_channels: int = 16,
        out_channels: int = 16,
        patch_size: tuple[int, int, int] | list[int] = (1, 2, 2),
        freq_dim: int = 256,
        text_dim: int = 4096,
        text_len: int = 512,
        block_frames: int = 3,
        window: int | None = None,
        sink: int = 0,
        sink_positions: str = "absolute",
        state_rank: int = 0,
        ffn_rank: int = 0,
        low_rank_alpha: float | None = None,
        ffn_rank_layers: str = "hybrid",
        state_form: dict[str, Any] | None = None,
        state_horizon: int | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_config(self.config)
        size = HeadSize(num_attention_heads, attention_head_dim)
        width = size.width
        patch = (patch_size[0], patch_size[1], patch_size[2])
        self.patch_embedding = nn.Conv3d(in_channels, width, kernel_size=patch, stride=patch)
        self.time_embedder = TimeEmbedder(width, freq_dim)
        self.text_embedder = TextEmbedder(text_dim, width)
        self.layers = LayerStack(
            TransformerLayer(
                spec,
                size=size,
                ffn_dim=ffn_dim,
                ffn_rank=ffn_rank_beside(spec, self.config),
                ffn_alpha=2.0 * ffn_rank if low_rank_alpha is None else float(low_rank_alpha),
                eps=eps,
            )
            for spec in layer_specs(self.config)
        )
        self.head = FlowHead(width, out_channels * math.prod(patch), eps)
        self.gradient_checkpointing = False

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """As in diffusers; the files can be read by whom the system's mask lets."""
        super().save_pretrained(save_directory, **options)
        if Path(save_directory).is_dir():
            open_to_readers(Path(save_directory))

    def to_json_string(self) -> str:
        """The config as it is saved."""
        return (
            json.dumps({**json.loads(super().to_json_string()), **FOR_OTHER_READERS}, indent=2, sort_keys=True) + "\n"
        )

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """As in diffusers, of a config without what is for other readers."""
        ours = {name: value for name, value in config_dict.items() if name not in FOR_OTHER_READERS}
        return super().extract_init_dict(ours, **options)

    def forward(
        self,
        latents: Float[Tensor, "batch channels frames height width"],
        timestep: Float[Tensor, "_ _"],
        text: Float[Tensor, "prompts words text"] | PromptCache,
        *,
        run: ParallelPass,
    ) -> Float[Tensor, "batch out_channels frames height width"]:
        """The flow of a whole clip in parallel, as in training; equal to streaming its blocks.

        Args:
            latents: noisy latents ``[B, C, F, h, w]``.
            timestep: one per sample and frame ``[B, F]``, in [0, 1000]; equal within a block. It may stay on the CPU.
            text: embeddings ``[B, words, text_dim]`` (rows past the prompt zero), or what ``prompt_context`` made.
            run: what a block remembers of earlier ones, see :mod:`arl2.model.passes`.

        Raises:
            GeometryError: latents that do not fit the patch, the block or the timesteps.
            ConfigError: text of another width or length than the model's.
        """
        self.parallel.require_alone()
        prompt, rows, columns = self._checked(latents, timestep, text)
        teacher_forcing = isinstance(run, TeacherForcing)
        blocks = split_blocks(latents.shape[2], self.config.block_frames, run.first_block_frames)
        layout = ClipLayout(blocks, rows * columns, teacher_forcing)
        x = self.embed(latents)
        if isinstance(run, TeacherForcing):
            if run.clean.shape != latents.shape:
                raise GeometryError(
                    f"The clean clip is {list(run.clean.shape)} but the noisy one {list(latents.shape)}; they must "
                    "match."
                )
            x = torch.cat([self.embed(run.clean), x], dim=1)
            timestep = torch.cat([torch.full_like(timestep, run.context_timestep), timestep], dim=1)
        time = self.time_embedder(timestep)
        # Both copies stand at the same positions.
        rotation = self._rotation([*range(layout.frames)] * len(layout.copies()), rows, columns, x.device)
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        with self.layers.in_turn() as layers:
            for layer, words in zip(layers, prompt.layers, strict=True):
                given = x, time.layers, words, rotation, layout
                x = checkpoint(keeping_backends(layer), *given, use_reentrant=False) if again else layer(*given)
        noisy, noisy_time = x[:, layout.copies()[-1] :], time.head[:, -layout.frames :]
        return self.flow_of(noisy, noisy_time, rows, columns)

    def predict(
        self,
        latents: Float[Tensor, "batch channels frames height width"],
        timestep: Float[Tensor, "_ _"],
        text: Float[Tensor, "prompts words text"] | PromptCache,
        memory: Memory,
    ) -> Float[Tensor, "batch out_channels frames height width"]:
        """The flow of one block, at the position where ``memory`` stands: a denoising pass, memory stays as it is.

        Args and errors as for :meth:`forward`, and:

        Raises:
            MemoryMismatchError: memory of another model, batch or size.
        """
        block = self._start_streaming(latents, timestep, text, memory)
        return self.runner.predict(self, block, memory)

    def commit(
        self,
        latents: Float[Tensor, "batch channels frames height width"],
        timestep: Float[Tensor, "_ _"],
        text: Float[Tensor, "prompts words text"] | PromptCache,
        memory: Memory,
    ) -> None:
        """The cache-update pass over a finished block: every layer's memory is written, nothing is predicted.

        Args and errors as for :meth:`predict`.
        """
        block = self._start_streaming(latents, timestep, text, memory)
        self.runner.commit(self, block, memory)

    def _start_streaming(
        self, latents: Tensor, timestep: Tensor, text: Tensor | PromptCache, memory: Memory
    ) -> StreamedBlock:
        self.parallel.require_inference()
        prompt, rows, columns = self._checked(latents, timestep, text)
        if not isinstance(memory, Memory):
            raise MemoryMismatchError(
                f"A stream needs memory; got {type(memory).__name__}. Allocate it with allocate_memory()."
            )
        frames = latents.shape[2]
        memory.check(self.identity, latents.shape[0], rows, columns, frames)
        memory.prepare(frames)
        rotation = self._rotation(range(memory.frames, memory.frames + frames), rows, columns, latents.device)
        rotation = self.parallel.own_rotation(rotation, frame_tokens=rows * columns)
        time = self.time_embedder(timestep)
        modulations = modulations_of(self.layers, time.layers)
        return StreamedBlock(latents, time.head, modulations, prompt.layers, rotation, rows, columns)

    def _checked(self, latents: Tensor, timestep: Tensor, text: Tensor | PromptCache) -> tuple[PromptCache, int, int]:
        """The prompt's keys and values, and the token grid."""
        batch, rows, columns = checked_latents(self.config, latents, timestep)
        prompt = text if isinstance(text, PromptCache) else self.prompt_context(text)
        if prompt.owner != self.identity:
            raise ConfigError(
                f"This prompt context was made by a model of {prompt.owner}, not of {self.identity}; "
                "make one with this model's prompt_context()."
            )
        if prompt.batch != batch:
            raise ConfigError(f"Got {prompt.batch} prompts for a batch of {batch} latents; give one prompt a sample.")
        return prompt, rows, columns

    def prompt_context(self, text: Float[Tensor, "batch words text"]) -> PromptCache:
        """Cross-attention keys and values of a prompt, for all layers; shorter texts are padded with zero rows.

        Raises:
            ConfigError: embeddings of another width, or more rows than ``text_len``.
        """
        if text.dim() != 3:
            raise ConfigError(f"The prompt embeddings are {list(text.shape)}; batch, rows, width are needed.")
        _, words, text_dim = text.shape
        if text_dim != self.config.text_dim:
            raise ConfigError(
                f"The prompt embeddings are {text_dim} wide but this model takes {self.config.text_dim}; "
                "use the text encoder that the model was trained with."
            )
        if words > self.config.text_len:
            raise ConfigError(
                f"The prompt embeddings have {words} rows; this model takes at most {self.config.text_len}."
            )
        refresh_folded(self)  # as the prompt is made of the weights as they are now
        padded = nn.functional.pad(text, (0, 0, 0, self.config.text_len - words))
        embedded = self.text_embedder(padded.to(self.compute_dtype))
        with self.layers.in_turn() as layers:
            return PromptCache(self.identity, tuple(layer.cross_attention.remember(embedded) for layer in layers))

    def allocate_memory(
        self,
        *,
        batch: int,
        height: int,
        width: int,
        window: int | Literal["config"] | None = "config",
        sink: int | None = None,
        sink_positions: SinkPositions | None = None,
        block_frames: int | None = None,
    ) -> Memory:
        """Empty memory for ``batch`` new streams of latents ``height x width``.

        Args:
            window: frames visible to softmax layers; ``"config"`` takes the model's, None sees the whole past.
            sink, sink_positions: as in the config unless given.
            block_frames: as in the config unless given.

        Raises:
            GeometryError: a latent size that does not fit the patch, or fewer tokens a frame than ranks.
            ConfigError: unknown sink positions.
            MemoryMismatchError: a window too small for the sinks and one block.
        """
        grid = token_grid(height, width, tuple(self.config.patch_size))
        if window == "config":
            window = cast(int | None, self.config.window)
        sink = (self.config.sink if window is not None else 0) if sink is None else sink
        sink_positions = self.config.sink_positions if sink_positions is None else sink_positions
        check_sink_positions(sink_positions)
        block_frames = self.config.block_frames if block_frames is None else block_frames
        if batch < 1 or block_frames < 1:
            raise MemoryMismatchError(f"Memory is for 1 or more streams and frames; got {batch} and {block_frames}.")
        geometry = MemoryGeometry(batch, grid.rows, grid.columns, block_frames)
        self.parallel.frame_parts(geometry.frame_tokens)  # a frame that cannot be shared is refused now
        layers = tuple(
            layer.self_attention.allocate_memory(
                geometry,
                window=window,
                sink=sink,
                sink_positions=sink_positions,
                dtype=self.compute_dtype,
                device=self.patch_embedding.weight.device,
            )
            for layer in self.layers
        )
        return Memory(self.identity, geometry, layers, parallel=self.parallel)

    @property
    def signature(self) -> str:
        """Plan and sizes. Two models that differ in their weights alone have the same one."""
        c = self.config
        ranks = f"ranks {c.state_rank} and {c.ffn_rank}"
        form = "".join(f", {name} {value}" for name, value in sorted((c.state_form or {}).items()))
        horizon = "" if c.state_horizon is None else f", horizon {c.state_horizon}"
        return f"plan {c.layer_plan}, {c.num_attention_heads} heads of {c.attention_head_dim}, {ranks}{form}{horizon}"

    @property
    def identity(self) -> ModelIdentity:
        """What memory and prompts in use must match."""
        weight = self.patch_embedding.weight
        return ModelIdentity(self.signature, weight.dtype, weight.device, self.parallel.ranks)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of activations and caches; a few parameters are float32 whatever it is."""
        return self.patch_embedding.weight.dtype

    def weights_address(self) -> int:
        return hash(tuple(parameter.data_ptr() for parameter in self.parameters()))

    def embed(self, latents: Tensor) -> Tensor:
        # Contiguous, so that the first layer's input looks like that of all others.
        x = self.patch_embedding(latents.to(self.compute_dtype))
        return self.parallel.own_tokens(x.flatten(2).mT, frame_tokens=math.prod(x.shape[3:])).contiguous()

    def flow_of(self, x: Tensor, time: Tensor, rows: int, columns: int) -> Tensor:
        _, pr, pc = self.config.patch_size
        values = self.parallel.all_tokens(self.head(x, time), frame_tokens=rows * columns)
        return rearrange(values, "b (f r c) (pr pc ch) -> b ch f (r pr) (c pc)", r=rows, c=columns, pr=pr, pc=pc)

    def _rotation(self, frames: range | list[int], rows: int, columns: int, device: torch.device) -> Rotation:
        return Rotation.of_grid(frames, rows, columns, self.config.attention_head_dim, device)
