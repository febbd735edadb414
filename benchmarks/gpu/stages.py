"""Stages of ``run.sh`` that compare ways to do one thing on a GPU; each prints one JSON object.

``arl2 bench`` measures what users run; these measure what it was chosen over, one step after the other.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from arl2.evaluation.bench.decode import random_codec
from arl2.evaluation.bench.models import ModelSize, hybrid_plan, random_model
from arl2.evaluation.bench.options import BlockOptions
from arl2.evaluation.bench.timing import Stopwatch
from arl2.kernels.backends import use_backends
from arl2.kernels.delta_rule import gated_delta_state
from arl2.model.execution import Execution
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.devices import large_model_dtype

Runs = dict[str, Callable[[], object]]
WINDOW, STEPS = 12, (1000.0, 937.5, 833.3, 625.0)
BLOCKS = 10


class Bench:
    """Sizes, device and clock of all stages."""

    def __init__(self, preset: str, device: str, codec_width: int) -> None:
        self.codec_width = codec_width
        self.size = ModelSize.of(BlockOptions(preset=preset))
        self.device, self.dtype = torch.device(device), large_model_dtype(device)
        self.heads, self.head_dim = (self.size.sizes[name] for name in ("num_attention_heads", "attention_head_dim"))
        self.watch = Stopwatch(self.device)
        self.tokens = self.size.height * self.size.width // 4  # a frame

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Random numbers on the device."""
        return torch.randn(shape, device=self.device, dtype=dtype or self.dtype)

    def model(self, block_frames: int = 3) -> CausalWanTransformer3DModel:
        """22 of 30 layers hybrid, or as many of those there are."""
        plan = hybrid_plan(self.size.layers, 22 / 30)
        model = random_model(self.size.config(plan, window=WINDOW, block_frames=block_frames), self.dtype, self.device)
        if self.device.type != "cpu":
            model.fuse_qkv_projections()  # as the command line does
        return model

    def times(self, runs: Runs, repeats: int = 5) -> dict[str, Any]:
        """Milliseconds of each, in turns; what cannot run says why."""
        found: dict[str, Any] = {}
        able: Runs = {}
        for name, run in runs.items():
            try:
                run()
                able[name] = run
            except Exception as error:  # whatever a kernel cannot do is a result
                found[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        laps: dict[str, list[float]] = {name: [] for name in able}
        for name, lap in self.watch.interleaved(able, repeats=repeats):
            laps[name].append(1000 * lap.clock)
        return {**found, **{name: sorted(each)[len(each) // 2] for name, each in laps.items()}}


def attention(bench: Bench) -> dict[str, Any]:
    """Each backend of torch at the three shapes of a block."""
    own = 3 * bench.tokens
    shapes = {"own block": (own, own), "window": (own, WINDOW * bench.tokens), "prompt": (own, 512)}
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    found = {}
    for shape, (queries, keys) in shapes.items():
        q, k, v = (bench.randn(1, n, bench.heads, bench.head_dim).transpose(1, 2) for n in (queries, keys, keys))
        runs: Runs = {"torch's choice": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v)}
        for name, backend in backends.items():

            def run(q: Tensor = q, k: Tensor = k, v: Tensor = v, backend: SDPBackend = backend) -> Tensor:
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(q, k, v)

            runs[name] = run
        times = bench.times(runs, repeats=10)
        flops = 4 * queries * keys * bench.heads * bench.head_dim
        rates = {name: flops / t / 1e9 for name, t in times.items() if isinstance(t, float)}
        found[shape] = {"ms": times, "tflops": rates}
    return found


def state(bench: Bench) -> dict[str, Any]:
    """Each form of the state update, and how far it is from the first that is exact."""
    shape = (1, 3 * bench.tokens, bench.heads, bench.head_dim)
    k, v = F.normalize(bench.randn(*shape), dim=-1), bench.randn(*shape)
    g, beta = (
        -bench.randn(*shape[:-1], dtype=torch.float32).abs(),
        bench.randn(*shape[:-1], dtype=torch.float32).sigmoid(),
    )
    start = bench.randn(1, bench.heads, bench.head_dim, bench.head_dim, dtype=torch.float32)

    def update(backend: str) -> Tensor:
        return gated_delta_state(k=k, v=v, g=g, beta=beta, initial_state=start, backend=backend)

    runs: Runs = {name: (lambda name=name: update(name)) for name in ("chunked", "blockwise", "triton", "fla")}
    times, exact = bench.times(runs), update("chunked")
    errors = {
        name: float((update(name) - exact).norm() / exact.norm()) for name, t in times.items() if isinstance(t, float)
    }
    return {"ms": times, "error": errors}


@contextmanager
def variant(model: CausalWanTransformer3DModel, name: str) -> Iterator[None]:
    """The model as a step of the plan left it."""
    backends = {
        "eager": {"elementwise": "torch", "delta_rule": "chunked"},
        "state update": {"elementwise": "torch"},
    }.get(name)
    model.execution = Execution(
        compile="inductor" if name == "compiled" else "off", cuda_graphs="on" if name == "graphs" else "off"
    )
    if backends is None:
        yield
    else:
        with use_backends(**backends):
            yield


def block(bench: Bench) -> dict[str, Any]:
    """Both passes, one step after the other; how far the flow of each is from the first."""
    names = ["eager", "state update", "kernels", "compiled", "graphs"]
    if bench.device.type != "cuda":
        names.remove("graphs")
    model, found = bench.model(), {}
    first: Tensor | None = None
    for name in names:
        try:
            with variant(model, name):
                passes = _Passes(bench, model)
                times = bench.times({"denoising pass": passes.predict, "cache-update pass": passes.commit})
                flow = passes.predict()
                first = flow if first is None else first
                error = float((flow - first).norm() / first.norm())
        except Exception as error_of_variant:  # the next step may do
            found[name] = {"failed": str(error_of_variant).strip().splitlines()[0][:300]}
            continue
        found[name] = {"ms": times, "error": error, "memory": _peak(bench)}
    return found


def blocks(bench: Bench) -> dict[str, Any]:
    """Blocks from noise to pictures, as a stream makes them; the text encoder is left out."""
    model, codec = bench.model(), random_codec("wan", bench.dtype, bench.device, base_dim=bench.codec_width)
    passes, cache = _Passes(bench, model), codec.new_cache()
    clocks = []
    for _ in range(BLOCKS):
        before = bench.watch.now()
        latents = passes.predict()
        for _ in STEPS[1:]:
            latents = passes.predict()
        passes.commit()
        between = bench.watch.now()
        codec.decode(latents.float(), cache)
        after = bench.watch.now()
        clocks.append((between.since(before).clock, after.since(between).clock))
    denoising, decoding = (sorted(each)[BLOCKS // 2] for each in zip(*clocks, strict=True))
    return {
        "denoising_ms": 1000 * denoising,
        "decoding_ms": 1000 * decoding,
        "video_frames_a_second": 12 / (denoising + decoding),
        "each_block_ms": [[round(1000 * part, 2) for part in each] for each in clocks],
        "memory": _peak(bench),
    }


def framewise(bench: Bench) -> dict[str, Any]:
    """Blocks of one latent frame: the smallest step, where launches count most."""
    model, found = bench.model(block_frames=1), {}
    for name in ["kernels", "graphs"] if bench.device.type == "cuda" else ["kernels"]:
        with variant(model, name):
            passes = _Passes(bench, model)
            found[name] = bench.times({"denoising pass": passes.predict, "cache-update pass": passes.commit})
    return {"ms": found}


class _Passes:
    """A stream in its steady state."""

    def __init__(self, bench: Bench, model: CausalWanTransformer3DModel) -> None:
        self.model = model
        torch.manual_seed(1)  # so that all variants are given the same
        frames = model.config.block_frames
        self.memory = model.allocate_memory(batch=1, height=bench.size.height, width=bench.size.width)
        self.memory.fill_random(4 * WINDOW)
        self.latents = bench.randn(1, 16, frames, bench.size.height, bench.size.width, dtype=torch.float32)
        self.timestep = torch.full((1, frames), 600.0, device=bench.device)
        self.prompt = model.prompt_context(bench.randn(1, model.config.text_len, model.config.text_dim))

    def predict(self) -> Tensor:
        return self.model.predict(self.latents, self.timestep, self.prompt, self.memory)

    def commit(self) -> None:
        self.model.commit(self.latents, self.timestep, self.prompt, self.memory)


def _peak(bench: Bench) -> int | None:
    """Bytes, at most, since the last time; None where nobody counts them."""
    if bench.device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(bench.device)
    torch.cuda.reset_peak_memory_stats(bench.device)
    return peak


STAGES = {"attention": attention, "state": state, "block": block, "blocks": blocks, "framewise": framewise}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--preset", default="wan-1.3b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--codec-width", type=int, default=96)
    asked = parser.parse_args()
    torch.manual_seed(0)
    print(json.dumps(STAGES[asked.stage](Bench(asked.preset, asked.device, asked.codec_width))))


if __name__ == "__main__":
    main()
