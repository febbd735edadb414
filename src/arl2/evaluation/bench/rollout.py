"""Time and memory of a video against its length, for five kinds of memory in one run.

Caches are filled with random keys and values as after so many frames, so that the last block of a long video is timed
without the blocks before it. The time of a whole video is the sum over its blocks; the time of a block between two
lengths that were measured is interpolated linearly, as attention costs grow linearly with what is seen.
"""

import bisect
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from arl2.attention.cost import MemoryBytes
from arl2.attention.memory import Memory
from arl2.errors import ConfigError, is_out_of_memory
from arl2.evaluation.bench.chart import Panel
from arl2.evaluation.bench.gate import kernel_checks, streaming_check
from arl2.evaluation.bench.machine import new_bytes
from arl2.evaluation.bench.models import ModelSize, hybrid_plan, random_model
from arl2.evaluation.bench.options import RolloutOptions
from arl2.evaluation.bench.part import Part
from arl2.evaluation.bench.result import Check, Finding, Row
from arl2.evaluation.bench.timing import Lap, Timing
from arl2.geometry import video_frames_of
from arl2.model.cost import memory_bytes
from arl2.model.transformer import CausalWanTransformer3DModel, PromptCache
from arl2.pipeline.free_memory import available_bytes

_TEMPORAL = 4  # video frames a latent frame, of the Wan VAE
_MEMORY_LIMIT = 0.02
_YOUNG, _OLD = 20, 1000  # blocks, counted from 1, whose times are held against each other
_SOFTMAX, _PUBLISHED = "softmax, full cache", "hybrid as published"


@dataclass(frozen=True)
class Baseline:
    """One kind of memory.

    Attributes:
        name: for people.
        plan: of the layers.
        window, sink: of softmax layers; None: the whole past.
    """

    name: str
    plan: str
    window: int | None
    sink: int

    @property
    def grows(self) -> bool:
        """Whether its memory takes more with every block."""
        return self.window is None and "S" in self.plan


class _Model(NamedTuple):
    """A transformer and a prompt as its layers see it."""

    transformer: CausalWanTransformer3DModel
    prompt: PromptCache


class _Bytes(NamedTuple):
    """Of one memory: what the cost model counts, what ``nbytes`` says, what the allocator or all tensors say."""

    counted: int
    held: int
    said: int
    allocated: int


@dataclass
class _Point:
    """Measurements of a baseline behind a past of some frames."""

    reads: list[Lap] = field(default_factory=list)
    commits: list[Lap] = field(default_factory=list)
    memory: _Bytes | None = None
    refused: bool = False


class RolloutPart(Part[RolloutOptions]):
    """See the module."""

    def __init__(self, options: RolloutOptions) -> None:
        super().__init__(options)
        options.execution.check(self.device)
        self.size = ModelSize.of(options)
        config = self.size.config("S")
        self.block: int = config.get("block_frames", 3)
        assert type(options.window) is int  # as RolloutOptions has checked
        assert type(options.steps) is int
        self._steps = options.steps
        if options.window < options.sink + self.block:
            raise ConfigError(
                f"A window of {options.window} latent frames cannot hold {options.sink} sink frames and a block of "
                f"{self.block}; use --window {options.sink + self.block} or more."
            )
        # Whole blocks, at least two, so that there is a past.
        latents = -(-(options.num_frames + _TEMPORAL - 1) // _TEMPORAL)
        self.latent_frames = max(2, -(-latents // self.block)) * self.block
        self.video_frames = video_frames_of(0, self.latent_frames, _TEMPORAL)
        layers, hybrid = self.size.layers, hybrid_plan(self.size.layers, options.hybrid_share)
        if set(hybrid) != {"H", "S"}:
            raise ConfigError(
                f"With {layers} layers a share of {options.hybrid_share:g} makes {hybrid.count('H')} hybrid; give "
                "a share, or a number of layers, that makes some hybrid and leaves some softmax."
            )
        window, sink = options.window, options.sink
        self.baselines = (
            Baseline(_SOFTMAX, "S" * layers, None, 0),
            Baseline("softmax, window and sink", "S" * layers, window, sink),
            Baseline(_PUBLISHED, hybrid, None, 0),
            Baseline("hybrid, window and sink", hybrid, window, sink),
            Baseline("all hybrid", "H" * layers, None, 0),
        )
        self._points = {one.name: {past: _Point() for past in self._pasts(one)} for one in self.baselines}
        self._models: dict[str, _Model] = {}

    def gate(self) -> Iterator[Check]:
        yield from kernel_checks(self.dtype, self.device)
        for plan, window, sink in (("SS", None, 0), ("SS", 5, 1), ("HS", None, 0), ("HS", 5, 1), ("HH", None, 0)):
            yield streaming_check(plan, self.dtype, self.device, window=window, sink=sink)

    @torch.no_grad()
    def measure(self) -> Iterator[str]:
        for plan in dict.fromkeys(one.plan for one in self.baselines):
            self._models[plan] = self._build(plan)
        for repeat in range(self.options.repeats):
            for baseline in self.baselines:
                for past in self._turns(baseline):
                    point = self._points[baseline.name][past]
                    if not point.refused:
                        self._measure(baseline, past, point)
                        yield f"round {repeat + 1} of {self.options.repeats}: {baseline.name}, latent frame {past}"

    def rows(self) -> Iterator[Row]:
        for baseline in self.baselines:
            for past, point in self._points[baseline.name].items():
                frames = video_frames_of(0, past, _TEMPORAL)
                if point.refused:
                    yield Row(_name_at(baseline, frames), {"memory": "more than there is"})
                elif point.commits and point.memory is not None:
                    block = [self._whole_block(*laps) for laps in zip(point.reads, point.commits, strict=False)]
                    yield Row(
                        _name_at(baseline, frames),
                        {
                            "read_seconds": Timing(tuple(point.reads)),
                            "commit_seconds": Timing(tuple(point.commits)),
                            "block_seconds": Timing(tuple(block)),
                            "memory_bytes": point.memory.counted,
                            "allocated_bytes": point.memory.allocated,
                        },
                    )
        for baseline in self.baselines:
            if (seconds := self._video_seconds(baseline)) is not None:
                first, last = seconds[0], self._last_block(baseline)
                yield Row(
                    f"{baseline.name}, whole video",
                    {
                        "video_seconds": first,
                        "last_block_seconds": last,
                        "memory_bytes": self._counted(baseline).at(self._kept(baseline, self.latent_frames)),
                        "weight_bytes": self._weights(baseline),
                    },
                )

    def findings(self) -> Iterator[Finding]:
        full = self.baselines[0]
        theirs = self._video_seconds(full)
        for baseline in self.baselines[1:]:
            ours = self._video_seconds(baseline)
            if ours is not None and theirs is not None:
                yield Finding(
                    f"{baseline.name}: speed-up over {full.name}, {self.video_frames:,} video frames",
                    theirs[0] / ours[0],
                    "times",
                    theirs[1] / ours[2],
                    theirs[2] / ours[1],
                )
        kept = {one.name: self._counted(one).at(self._kept(one, self.latent_frames)) for one in self.baselines}
        for baseline in self.baselines[1:]:
            yield Finding(
                f"{baseline.name}: memory of the stream saved against {full.name}",
                1 - kept[baseline.name] / kept[full.name],
                "share",
            )
        if full.plan in self._models:
            for baseline in self.baselines[1:]:
                if baseline.plan in self._models:
                    both = [kept[one.name] + self._weights(one) for one in (baseline, full)]
                    yield Finding(f"{baseline.name}: memory saved, weights included", 1 - both[0] / both[1], "share")
        for baseline in self.baselines:
            young, old = ([] if baseline.grows else self._blocks(baseline, number) for number in (_YOUNG, _OLD))
            if young and old:
                name = f"{baseline.name}: time of block {_OLD:,} over block {_YOUNG}, fastest runs"
                pairs = [late / early for early, late in zip(young, old, strict=False)]
                yield Finding(name, min(old) / min(young), "times", *_middle_half(pairs))

    def late_checks(self) -> Iterator[Check]:
        for baseline in self.baselines:
            measured = [p.memory for p in self._points[baseline.name].values() if p.memory and p.memory.counted]
            if measured:
                last = measured[-1]
                yield Check(
                    f"memory of {baseline.name}: allocated against nbytes",
                    abs(last.allocated / last.said - 1),
                    _MEMORY_LIMIT,
                )
                # What a window takes is allocated at once; of a cache that grows, what is held.
                yield Check(
                    f"memory of {baseline.name}: counted by the cost model",
                    abs((last.held if baseline.grows else last.said) / last.counted - 1),
                    _MEMORY_LIMIT,
                )

    def notes(self) -> Iterator[str]:
        yield (
            f"A block is {self._steps} denoising passes and a cache-update pass. The time of a video is the sum "
            f"over its {self.latent_frames // self.block} blocks, interpolated linearly between the lengths measured."
        )
        yield (
            "'after N': the block that follows N video frames. Caches hold random keys and values, as after so many "
            f"frames; nothing was rolled out. Whole videos have {self.video_frames:,} video frames."
        )
        yield (
            f"Block {_OLD:,} over block {_YOUNG}: other work on a machine only adds to a time, so the fastest runs are "
            "compared; in brackets the middle half of the pairs that were timed one after the other."
        )

    def panels(self) -> list[Panel]:
        numbers = sorted({*range(0, self.latent_frames, max(1, self.latent_frames // 24 // self.block) * self.block)})
        times: dict[str, dict[float, float]] = {}
        memory: dict[str, dict[float, float]] = {}
        for one in self.baselines:
            if (curve := self._curve(one)) is not None:
                at = [video_frames_of(0, past + self.block, _TEMPORAL) for past in numbers]
                times[one.name] = {x: _between(curve, past) for x, past in zip(at, numbers, strict=True)}
                kept = (self._counted(one).at(self._kept(one, past + self.block)) / 1e9 for past in numbers)
                memory[one.name] = dict(zip(at, kept, strict=True))
        if not times:
            return []
        return [Panel("seconds a block", times), Panel("memory of the stream, GB", memory)]

    def _pasts(self, baseline: Baseline) -> list[int]:
        """Latent frames before the blocks that are timed."""
        last = self.latent_frames - self.block
        if baseline.grows:
            return sorted({0, last // 2 // self.block * self.block, last})
        old = [(number - 1) * self.block for number in (_YOUNG, _OLD)]
        full = 0 if baseline.window is None else -(-baseline.window // self.block) * self.block
        return sorted({0, full, *old})

    def _turns(self, baseline: Baseline) -> list[int]:
        """The pasts of a round in their order. Young and old block alternate a few times: a small ratio takes many."""
        pasts = list(self._points[baseline.name])
        more = 0 if baseline.grows or self.options.repeats == 1 else 4
        return [*pasts, *(more * [(number - 1) * self.block for number in (_YOUNG, _OLD)])]

    def _build(self, plan: str) -> _Model:
        model = random_model(self.size.config(plan), self.dtype, self.device)
        model.execution = self.options.execution
        if self.device.type != "cpu":
            model.fuse_qkv_projections()  # as the command line does
        draw = torch.Generator(self.device).manual_seed(1)
        text = torch.randn(1, model.config.text_len, model.config.text_dim, generator=draw, device=self.device)
        return _Model(model, model.prompt_context(text))

    def _measure(self, baseline: Baseline, past: int, point: _Point) -> None:
        model, prompt = self._models[baseline.plan]
        free = available_bytes("cpu") if self.device.type == "cpu" else None  # others refuse by themselves
        if free is not None and self._needed(baseline, past) > free:
            point.refused = True
            return
        try:
            memory = self._filled(baseline, past, point)
            draw = torch.Generator(self.device).manual_seed(past)
            shape = (1, model.config.in_channels, self.block, self.size.height, self.size.width)
            latents = torch.randn(shape, generator=draw, device=self.device)
            noisy, clean = torch.full((1, self.block), 600.0), torch.zeros(1, self.block)
            if not point.reads and (past == 0 or self.device.type != "cpu"):
                model.predict(latents, noisy, prompt, memory)  # warm-up: a GPU chooses its kernels by size
            read = self.watch.time(lambda: model.predict(latents, noisy, prompt, memory))
            commit = self.watch.time(lambda: model.commit(latents, clean, prompt, memory))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            point.refused = True
            return
        point.reads.append(read)
        point.commits.append(commit)

    def _filled(self, baseline: Baseline, past: int, point: _Point) -> Memory:
        """A memory that stands at ``past``; what it takes is found out the first time."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # pieces of other sizes would stand in the way of the largest cache
        with new_bytes(self.device) as taken:
            memory = self._models[baseline.plan].transformer.allocate_memory(
                batch=1,
                height=self.size.height,
                width=self.size.width,
                window=baseline.window,
                sink=baseline.sink,
            )
            memory.fill_random(past, seed=past)
            allocated = taken() if point.memory is None else 0
        if point.memory is None:
            held = sum(x.nbytes for x in memory.views().values())
            counted = self._counted(baseline).at(self._kept(baseline, past))
            point.memory = _Bytes(counted, held, memory.nbytes, allocated)
        return memory

    def _needed(self, baseline: Baseline, past: int) -> int:
        """Bytes of a memory at ``past`` with one more block; a cache doubles its room as it grows, tensor by tensor."""
        frames = self._kept(baseline, past + self.block)
        room = 4 * self.block
        while baseline.grows and room < frames:
            room *= 2
        counted = self._counted(baseline)
        return counted.at(room if baseline.grows else frames) + (
            counted.growth_per_frame * room if baseline.grows else 0
        )

    def _counted(self, baseline: Baseline) -> MemoryBytes:
        config: dict[str, Any] = self.size.config(baseline.plan, window=baseline.window, sink=baseline.sink)
        rows, columns = self.size.height // 2, self.size.width // 2
        return memory_bytes(config, batch=1, frame_tokens=rows * columns, element_size=self.dtype.itemsize)

    def _kept(self, baseline: Baseline, frames: int) -> int:
        """Latent frames that a cache has room for after ``frames``: a window is allocated whole."""
        return frames if baseline.window is None else baseline.window

    def _weights(self, baseline: Baseline) -> int:
        return sum(x.nbytes for x in self._models[baseline.plan].transformer.parameters())

    def _whole_block(self, read: Lap, commit: Lap) -> Lap:
        steps = self._steps
        return Lap(steps * read.seconds + commit.seconds, steps * read.clock + commit.clock)

    def _curve(self, baseline: Baseline, kind: str = "median") -> dict[int, float] | None:
        """Seconds of a block by its past; None unless all lengths were measured."""
        points = self._points[baseline.name]
        if any(not point.commits for point in points.values()):
            return None
        ways: dict[str, Callable[[list[float]], float]] = {
            "median": statistics.median,
            "smallest": min,
            "largest": max,
        }
        choose = ways[kind]
        return {
            past: self._steps * choose([lap.seconds for lap in point.reads])
            + choose([lap.seconds for lap in point.commits])
            for past, point in points.items()
        }

    def _video_seconds(self, baseline: Baseline) -> tuple[float, float, float] | None:
        """Of the whole video: with medians, with the fastest and with the slowest runs."""
        curves = [self._curve(baseline, kind) for kind in ("median", "smallest", "largest")]
        pasts = range(0, self.latent_frames, self.block)
        found = [sum(_between(curve, past) for past in pasts) for curve in curves if curve is not None]
        return (found[0], found[1], found[2]) if found else None

    def _last_block(self, baseline: Baseline) -> float:
        curve = self._curve(baseline)
        assert curve is not None  # asked for once all lengths were measured
        return _between(curve, self.latent_frames - self.block)

    def _blocks(self, baseline: Baseline, number: int) -> list[float]:
        """Seconds of each time that a block was timed; blocks are counted from 1."""
        point = self._points[baseline.name][(number - 1) * self.block]
        return [self._whole_block(*laps).seconds for laps in zip(point.reads, point.commits, strict=False)]


def _middle_half(values: list[float]) -> tuple[float, float]:
    """What a quarter of the values lies below, and what a quarter lies above."""
    ordered = sorted(values)
    outside = len(ordered) // 4
    return ordered[outside], ordered[-1 - outside]


def _name_at(baseline: Baseline, frames: int) -> str:
    return f"{baseline.name}, after {frames:,}"


def _between(curve: dict[int, float], past: int) -> float:
    """Linearly between the two lengths around ``past``; the last one's beyond it."""
    known = sorted(curve)
    if past >= known[-1]:
        return curve[known[-1]]
    right = bisect.bisect_right(known, past)
    a, b = known[right - 1], known[right]
    return curve[a] + (curve[b] - curve[a]) * (past - a) / (b - a)
