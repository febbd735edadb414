"""One block, part by part: how long each takes, and how near that is to what the machine can do at best."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from arl2.attention.kind import Access
from arl2.attention.memory import Memory
from arl2.evaluation.account import Account, accounted
from arl2.evaluation.bench.decode import random_codec
from arl2.evaluation.bench.gate import kernel_checks, random_writes, streaming_check
from arl2.evaluation.bench.models import ModelSize, hybrid_plan, random_model
from arl2.evaluation.bench.options import BlockOptions
from arl2.evaluation.bench.part import Part
from arl2.evaluation.bench.result import Check, Row
from arl2.evaluation.bench.timing import Lap, Timing
from arl2.kernels.delta_rule import gated_delta_state
from arl2.kernels.rope import Rotation
from arl2.model.cost import pass_flops
from arl2.model.execution import AS_WRITTEN, Execution
from arl2.model.transformer import CausalWanTransformer3DModel, PromptCache
from arl2.video.codec import CodecCache

# The cost model leaves out what is small at the sizes of real models, such as the last chunk of a state update.
_COUNT_LIMIT, _SMALL_LIMIT = 0.03, 0.1
_SMALL_WIDTH = 1024


@dataclass
class _Piece:
    """Something that is timed: what it counts to, and its times so far."""

    account: Account
    laps: list[Lap]


class BlockPart(Part[BlockOptions]):
    """See the module."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__(options)
        options.execution.check(self.device)
        self.size = ModelSize.of(options)
        self.plan = hybrid_plan(self.size.layers, options.hybrid_share)
        self._pieces: dict[str, _Piece] = {}
        self._counted: dict[str, int] = {}
        assert type(options.window) is int  # as BlockOptions has checked
        self.window = options.window

    def gate(self) -> Iterator[Check]:
        yield from kernel_checks(self.dtype, self.device)
        for plan in dict.fromkeys(("HS" if "H" in self.plan else "SS", "SS" if "S" in self.plan else "HH")):
            yield streaming_check(plan, self.dtype, self.device, window=5)

    @torch.no_grad()
    def measure(self) -> Iterator[str]:
        with FakeTensorMode():  # all that is built and run in it has shapes and no numbers
            accounts = {name: _counted(run) for name, run in self._runs(AS_WRITTEN).items()}
        yield "counted kernels and bytes"
        runs = self._runs(self.options.execution)
        self._pieces = {name: _Piece(accounts[name], []) for name in runs}
        for name, lap in self.watch.interleaved(runs, repeats=self.options.repeats):
            self._pieces[name].laps.append(lap)
            yield f"timed: {name}"

    def rows(self) -> Iterator[Row]:
        for name, piece in self._pieces.items():
            if not piece.laps:
                continue
            seconds, account = Timing(tuple(piece.laps)), piece.account
            arithmetic = account.flops / self.matrix_rate
            traffic = account.elementwise.bytes / self.rates["copy_bytes"]
            yield Row(
                name,
                {
                    "seconds": seconds,
                    "flops": account.flops,
                    "product_share": arithmetic / seconds.median,
                    "floor_share": (arithmetic + traffic) / seconds.median,
                    "product_floor_seconds": arithmetic,
                    "traffic_floor_seconds": traffic,
                    "kernels": account.kernels,
                    "elementwise_bytes": account.elementwise.bytes,
                },
            )

    def late_checks(self) -> Iterator[Check]:
        for name, flops in self._counted.items():
            if name in self._pieces:
                error = abs(self._pieces[name].account.flops / flops - 1)
                limit = _COUNT_LIMIT if self._width >= _SMALL_WIDTH else _SMALL_LIMIT
                yield Check(f"operations of a {name}: dispatched against the cost model", error, limit)

    def notes(self) -> Iterator[str]:
        yield (
            f"Plan {self.plan}, window {self.window}, full; a part is of one layer. product_share: the counted "
            "operations at this machine's own rate of a matrix product, over the time. floor_share: with the bytes of "
            "everything else at its rate of a copy."
        )
        if self.dtype is not torch.float32:
            yield "State and state update are float32 whatever the dtype; their share is of the dtype's own rate."

    @property
    def _width(self) -> int:
        sizes = self.size.sizes
        return int(sizes["num_attention_heads"] * sizes["attention_head_dim"])

    def _runs(self, execution: Execution) -> dict[str, Callable[[], object]]:
        model = random_model(self.size.config(self.plan, window=self.window), self.dtype, self.device)
        model.execution = execution
        if self.device.type != "cpu":
            model.fuse_qkv_projections()  # as the command line does
        memory = model.allocate_memory(batch=1, height=self.size.height, width=self.size.width)
        memory.fill_random(4 * self.window // memory.geometry.block_frames * memory.geometry.block_frames)
        draw = torch.Generator(self.device).manual_seed(0)
        text = torch.randn(1, model.config.text_len, model.config.text_dim, generator=draw, device=self.device)
        prompt = model.prompt_context(text)
        runs = self._passes(model, memory, prompt, draw) | self._parts(model, memory, prompt, draw)
        return runs | (self._decoding(memory, draw) if self.options.vae else {})

    def _passes(
        self, model: CausalWanTransformer3DModel, memory: Memory, prompt: PromptCache, draw: torch.Generator
    ) -> dict[str, Callable[[], object]]:
        frames = memory.geometry.block_frames
        shape = (1, model.config.in_channels, frames, self.size.height, self.size.width)
        latents = torch.randn(shape, generator=draw, device=self.device)
        noisy, clean = torch.full((1, frames), 600.0), torch.zeros(1, frames)
        past = self.window - frames
        for name, commit in (("denoising pass", False), ("cache-update pass", True)):
            flops = pass_flops(model.config, memory.geometry, past_frames=past, commit=commit)
            self._counted[name] = flops.total
        return {
            "denoising pass": lambda: model.predict(latents, noisy, prompt, memory),
            # The window is full and stays so: every run is that of a later block.
            "cache-update pass": lambda: model.commit(latents, clean, prompt, memory),
        }

    def _parts(
        self, model: CausalWanTransformer3DModel, memory: Memory, prompt: PromptCache, draw: torch.Generator
    ) -> dict[str, Callable[[], object]]:
        geometry, size = memory.geometry, self.size.sizes
        heads, head_dim = size["num_attention_heads"], size["attention_head_dim"]
        x = torch.randn(1, geometry.block_tokens, heads * head_dim, generator=draw, device=self.device).to(self.dtype)
        here = range(memory.frames, memory.frames + geometry.block_frames)
        rotation = Rotation.of_grid(here, geometry.rows, geometry.columns, head_dim, self.device)
        layers = list(model.layers)
        memory.prepare(geometry.block_frames)
        runs: dict[str, Callable[[], object]] = {}
        for i, layer in enumerate(layers):
            kind = layer.self_attention.spec.name
            own = memory.layers[i]
            if f"self-attention, {kind}" not in runs:

                def attend(layer=layer, own=own) -> object:  # type: ignore[no-untyped-def]
                    return layer.self_attention.stream(x, rotation, own, Access.READ)

                runs[f"self-attention, {kind}"] = attend
        first, words = layers[0], prompt.layers[0]
        if "H" in self.plan:
            writes = random_writes((1, geometry.block_tokens, heads, head_dim), self.dtype, self.device)
            state = torch.randn(1, heads, head_dim, head_dim, generator=draw, device=self.device)
            runs["state update"] = lambda: gated_delta_state(**writes, initial_state=state)
        runs["cross-attention"] = lambda: first.cross_attention(first.cross_norm(x), words)
        runs["feed-forward"] = lambda: first.ffn(x)
        return runs

    def _decoding(self, memory: Memory, draw: torch.Generator) -> dict[str, Callable[[], object]]:
        codec = random_codec("wan", self.dtype, self.device)
        shape = (1, codec.latent_channels, memory.geometry.block_frames, self.size.height, self.size.width)
        latents = torch.randn(shape, generator=draw, device=self.device)
        cache: CodecCache = codec.new_cache()
        codec.decode(latents, cache)
        return {"Wan VAE, decode": lambda: codec.decode(latents, cache)}


def _counted(run: Callable[[], object]) -> Account:
    """What a run launches and moves."""
    with accounted() as account:
        run()
    return account
