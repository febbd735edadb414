"""What four ranks do for ``test_sequence_parallel``: the same streams as one rank, and notes on them.

python -m tests.attention.ulysses FOLDER     (FOLDER/1 holds what one rank made)
"""

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from arl2.errors import Arl2Error
from arl2.model.execution import Execution
from arl2.model.passes import DiffusionForcing
from arl2.model.precision import cast_model
from arl2.pipeline.pipeline import ARL2Pipeline
from forked import forked_ranks
from pipeline.stand_in import SETTINGS, stand_in_pipeline
from rollout.streams import OTHER, PROMPT, latents_of, take
from support import randn, tiny_model

# 6 tokens a frame: 2, 2, 1 and 1 of them on four ranks.
SMALL = replace(SETTINGS, height=32, width=48, steps=(1000,))
GUIDED = replace(SMALL, solver="euler", solver_steps=2, guidance_scale=2.0, negative_prompt="yellow")
# Plan, settings, options of the stream. Windows slide within five blocks.
STREAMS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "softmax": ("SS", SMALL, {"window": 6, "sink": 2, "sink_positions": "relative"}),
    "hybrid": ("HH", SMALL, {}),
    "mixed": ("HSWV", SMALL, {"window": 7, "sink": 1, "rewind_kind": "exact"}),
    "guided": ("SH", GUIDED, {"window": None}),
}
# Two ranks make two of them and two others the rest; then all four make one.
PAIRS = (("softmax", "mixed"), ("hybrid", "guided"))
FOUR = "mixed"


@functools.cache
def pipeline(name: str, heads: int = 4) -> ARL2Pipeline:
    plan, settings, _ = STREAMS[name]
    pipe = stand_in_pipeline(plan, settings)
    transformer = tiny_model(plan, block_frames=3, num_attention_heads=heads, text_len=pipe.text.length)
    with torch.no_grad():
        transformer.head.proj.weight.mul_(0.3)
    return ARL2Pipeline(transformer, pipe.codec, pipe.text, settings)


def streamed(name: str, place: Path) -> dict[str, Tensor]:
    """Latents of a stream to which everything happens that can."""
    pipe, options = pipeline(name), STREAMS[name][2]
    place.mkdir(parents=True, exist_ok=True)
    stream, made = pipe.stream(PROMPT, seed=3, **options), {}
    made["begun"] = latents_of(take(stream, 3))
    stream.save(place / "exact.arl2")
    stream.save(place / "light.arl2", "light")
    made["forked"] = latents_of(take(stream.fork(seed=5), 1))
    stream.change_prompt(OTHER, "refresh")
    made["refreshed"] = latents_of(take(stream, 2))
    stream.rewind(2)
    made["rewound"] = latents_of(take(stream, 1))
    return made | resumed(name, place)


def resumed(name: str, place: Path) -> dict[str, Tensor]:
    """What follows the snapshots in a place."""
    kinds = ("exact", "light")
    return {f"{kind}-resumed": latents_of(take(pipeline(name).resume(place / f"{kind}.arl2"), 1)) for kind in kinds}


def half_precision() -> Tensor:
    """One pass in bfloat16 over what two blocks left."""
    model = cast_model(tiny_model("HS", num_attention_heads=4), torch.bfloat16)
    if dist.is_initialized():
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    memory, text = model.allocate_memory(batch=2, height=4, width=6), randn(2, 5, 10)
    with torch.no_grad():
        for block in range(2):
            model.commit(randn(2, 3, 2, 4, 6, seed=block), torch.zeros(2, 2), text, memory)
        return model.predict(randn(2, 3, 2, 4, 6, seed=9), torch.full((2, 2), 700.0), text, memory)


def refusal(work: Callable[[], object]) -> str:
    try:
        work()
    except Arl2Error as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def nbytes(name: str) -> int:
    model = pipeline(name).transformer
    return model.allocate_memory(batch=1, height=4, width=6, window=7).nbytes


def in_groups(place: Path, rank: int, notes: dict[str, Any]) -> None:
    """Streams of two ranks and of four; then each is resumed by other ranks than those that saved it."""
    for ranks, names, others in ((2, PAIRS[rank // 2], ("1",)), (4, (FOUR,), ("1", "2"))):
        for name in names:
            pipeline(name).enable_parallelism(ulysses_degree=ranks)
            made = streamed(name, place / str(ranks) / name)
            for other in others:
                made |= {f"{kind} of {other}": x for kind, x in resumed(name, place / other / name).items()}
            keep(made, place / str(ranks) / name / f"rank-{rank}.safetensors")
            notes[f"bytes {name} {ranks}"] = nbytes(name)
        dist.barrier()
    pipeline(FOUR).enable_parallelism(ulysses_degree=2)
    keep(resumed(FOUR, place / "4" / FOUR), place / "4" / FOUR / f"two-{rank}.safetensors")
    keep({"flow": half_precision()}, place / f"half-{rank}.safetensors")


def keep(made: dict[str, Tensor], file: Path) -> None:
    save_file({key: x.contiguous() for key, x in made.items()}, file)


def refused(place: Path, rank: int, notes: dict[str, Any]) -> None:
    pipe = pipeline("hybrid", heads=2)
    notes["heads"] = refusal(pipe.enable_parallelism)
    notes["three"] = refusal(lambda: pipe.enable_parallelism(ulysses_degree=3))
    pipe.transformer.layers[0].self_attention.splits_heads = False
    notes["kind"] = refusal(lambda: pipe.enable_parallelism(ulysses_degree=2))
    pipe = pipeline("mixed")
    pipe.enable_parallelism(ulysses_degree=1)
    model, given = pipe.transformer, (randn(1, 3, 3, 4, 6), torch.zeros(1, 3), randn(1, 5, 10))
    stream, memory = pipe.stream(PROMPT, seed=3), model.allocate_memory(batch=1, height=4, width=6)
    pipe.enable_parallelism()
    notes["stream"] = refusal(lambda: next(stream))
    with torch.no_grad():
        notes["memory"] = refusal(lambda: model.commit(*given, memory))
    own = model.allocate_memory(batch=1, height=4, width=6)
    notes["gradients"] = refusal(lambda: model.predict(*given, own))
    with torch.no_grad():
        notes["clip"] = refusal(lambda: model(*given, run=DiffusionForcing()))
    model.execution = Execution(compile="eager")
    notes["compiled"] = refusal(pipe.enable_parallelism)
    model.execution = Execution()
    notes["tokens"] = refusal(lambda: model.allocate_memory(batch=1, height=2, width=2))
    split = pipe.stream(PROMPT, seed=3)
    notes["staged"] = refusal(lambda: split.stage(place / "x.arl2"))
    notes["unwritable"] = refusal(lambda: split.save(place / "nowhere" / "x.arl2"))
    notes["goes on"] = list(next(split).latents.shape)


def lost(place: Path, rank: int, notes: dict[str, Any]) -> None:
    """Rank 1 does not answer rank 0 in time; then rank 3 ends, and nobody waits for it."""
    pairs = [dist.new_group(ranks, timeout=timedelta(seconds=1)) for ranks in ([0, 1], [2, 3])]
    dist.barrier()
    if rank < 2:
        mesh = DeviceMesh.from_group(pairs[0], "cpu", mesh_dim_names=("ulysses",))
        pipe = pipeline("hybrid")
        pipe.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, mesh=mesh))
        stream = pipe.stream(PROMPT, seed=3)
        if rank == 0:
            started = time.monotonic()
            notes["silent"] = refusal(lambda: take(stream, 1))
            notes["silent seconds"] = time.monotonic() - started
    time.sleep(1.5 if rank == 1 else 0)
    pipe = pipeline("mixed")
    pipe.enable_parallelism()
    stream = pipe.stream(PROMPT, seed=3)
    take(stream, 1)
    if rank == 3:
        note(place, rank, notes)
        os._exit(3)
    started = time.monotonic()
    notes["gone"] = refusal(lambda: take(stream, 1))
    notes["gone seconds"] = time.monotonic() - started


def note(place: Path, rank: int, notes: dict[str, Any]) -> None:
    (place / f"notes-{rank}.json").write_text(json.dumps(notes))


def main(place: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, notes = dist.get_rank(), {}
    for part in (in_groups, refused, lost):
        started = time.monotonic()
        part(place, rank, notes)
        notes[f"seconds of {part.__name__}"] = time.monotonic() - started
    note(place, rank, notes)


if __name__ == "__main__":
    codes = forked_ranks(4, functools.partial(main, Path(sys.argv[1])))
    sys.exit(codes != [0, 0, 0, 3])
