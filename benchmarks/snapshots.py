"""Size and time of snapshots at the sizes of Wan2.1-1.3B, 480 x 832, bf16: saving a live stream, and bringing it back.

    python benchmarks/snapshots.py

Two models: 22 of 30 layers hybrid with window 12 in the rest, and all hybrid. Memory and latents are allocated at full
size and filled with random numbers; the transformer is never run (its weights are allocated and not touched, but for
the samples that the model's hash reads). What a resumed stream does besides, text keys and the clean passes of a light
one, is counted in passes. The decoder's cache of the full VAE is measured in shapes; with --decoder it is filled and
saved as well, which takes 8 GB. Prints a table, then one line of JSON.
"""

import argparse
import gc
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from arl2.attention.memory import KeyValueCache, Memory, RecurrentState
from arl2.diffusion.schedule import NoiseSchedule, StepPlan
from arl2.geometry import FrameRange
from arl2.model.precision import cast_model
from arl2.model.presets import preset_config
from arl2.model.transformer import CausalWanTransformer3DModel, PromptCache
from arl2.rollout.denoise import Prompted, Rollout
from arl2.rollout.noise import SeededNoise
from arl2.rollout.samplers import FewStep
from arl2.rollout.settings import GenerationSettings, RolloutSettings
from arl2.shapes.prompts.text import ShapesText
from arl2.streams.components import Components
from arl2.streams.model_hash import parts_hash
from arl2.streams.recent import LatentBlock, Prompts, Recent
from arl2.streams.request import MemoryShape
from arl2.streams.snapshot_file import read_snapshot
from arl2.streams.state import StreamConfig, StreamState
from arl2.streams.stream import Stream
from arl2.video.codec import CodecCache
from arl2.video.wan_codec import WanCodec

BATCH, HEIGHT, WIDTH = 1, 60, 104
TARGETS = {"light": "<= 64 MB, < 1 s", "exact": "17 MB of state + 0.92 GB of windows + decoder"}


def build_model(hybrid: int, window: int | None) -> CausalWanTransformer3DModel:
    """Full size, weights allocated but not written."""
    with torch.device("meta"):
        config = preset_config("wan2.1-t2v-1.3b", hybrid_layers=range(hybrid), state_rank=16, ffn_rank=16)
        model = cast_model(CausalWanTransformer3DModel(**config, window=window), torch.bfloat16)
    return model.to_empty(device="cpu").eval()


def decoder_cache(fill: bool) -> tuple[CodecCache, int]:
    """The cache of the full VAE's decoder in the middle of a stream, and its bytes; without ``fill`` it is empty."""
    with torch.device("meta"):
        codec = WanCodec(AutoencoderKLWan(base_dim=96).eval()).to(torch.bfloat16)
        cache = codec.new_cache()
        with torch.no_grad():
            codec.decode(torch.zeros(BATCH, 16, 3, HEIGHT, WIDTH, dtype=torch.bfloat16), cache)
    nbytes = sum(x.nbytes for x in cache.features.values())
    features = {name: torch.randn(x.shape, dtype=x.dtype) for name, x in cache.features.items()} if fill else {}
    return CodecCache("decoder", cache.latent_frames, features, cache.layout), nbytes


def fill(memory: Memory, blocks: int, draw: torch.Generator) -> None:
    """As after so many blocks, with random numbers in it."""
    frames = memory.geometry.block_frames
    for layer in memory.layers:
        for _ in range(blocks):
            if isinstance(layer, KeyValueCache):
                shape = (BATCH, frames * memory.geometry.frame_tokens, 12, 128)
                block = torch.randn(shape, generator=draw).bfloat16()
                layer.write(block, block, frames)
            elif isinstance(layer, RecurrentState):
                layer.write(torch.randn(layer.state.shape, generator=draw), frames)
    memory.frames = blocks * frames


def stream_of(model: CausalWanTransformer3DModel, window: int | None, decoder: CodecCache) -> Stream:
    """A stream that has made 10 blocks."""
    draw = torch.Generator().manual_seed(0)
    shape = MemoryShape(BATCH, HEIGHT, WIDTH, window, 0, "absolute")
    memory = shape.allocate(model)
    fill(memory, 10, draw)
    schedule = NoiseSchedule()
    sampler = FewStep(StepPlan.from_steps((1000, 750, 500, 250), schedule=schedule), schedule)
    rollout = Rollout(
        model,
        [Prompted(PromptCache(model.identity, ()), memory)],
        noise=SeededNoise([0]),
        settings=RolloutSettings(sampler, HEIGHT, WIDTH),
    )
    recent = Recent.of_window(window, 0)
    for start in range(0, memory.frames, 3):
        latents = torch.randn(BATCH, 16, 3, HEIGHT, WIDTH, generator=draw)
        recent = recent.with_block(LatentBlock(FrameRange(start, start + 3), latents))
    text = torch.randn(BATCH, model.config.text_len, model.config.text_dim, generator=draw).bfloat16()
    state = StreamState(
        rollout=rollout,
        seeds=(0,),
        prompts=Prompts("a prompt of 512 pieces", (text,)),
        recent=recent,
        decoder=decoder,
        decoded=rollout.next_block()[0],
    )
    # The tiny text part and an empty codec stand for what is not measured.
    codec: Any = decoder_cache_owner()
    parts = Components(model, codec, ShapesText.build(), GenerationSettings(window=window))
    return Stream(StreamConfig(parts, shape, None, 8, "light"), state)


def decoder_cache_owner() -> WanCodec:
    """A VAE of the right kind, smaller."""
    return WanCodec(AutoencoderKLWan(base_dim=4).eval())


def bring_back(path: Path, model: CausalWanTransformer3DModel, window: int | None, kind: str) -> None:
    """Read the file, checksum and all, and fill a new memory from it."""
    facts, tensors = read_snapshot(path)

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}

    memory = MemoryShape(BATCH, HEIGHT, WIDTH, window, 0, "absolute").allocate(model)
    if kind == "exact":
        memory.restore(under("memory.0."), facts["memories"][0])
    else:
        memory.begin_at(facts["frames"])
        memory.restore_states(under("states.0."))


def seconds_of(action: Any, repeats: int) -> tuple[float, float]:
    """Medians of a few: of the clock, and of the processor (which other work on the machine does not change)."""
    times = []
    for _ in range(repeats):
        gc.collect()
        started, busy = time.perf_counter(), time.process_time()
        action()
        times.append((time.perf_counter() - started, time.process_time() - busy))
    clock, processor = zip(*times, strict=True)
    return statistics.median(clock), statistics.median(processor)


def peak_bytes() -> int:
    """The most memory this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", action="store_true", help="save the full VAE's decoder cache, too")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where snapshots are written (default: a temporary folder)")
    given = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for name, hybrid, window in (("22/30 hybrid, window 12", 22, 12), ("all hybrid", 30, None)):
            model = build_model(hybrid, window)
            decoder, decoder_bytes = decoder_cache(given.decoder)
            stream = stream_of(model, window, decoder)
            for kind in ("light", "exact"):
                path = Path(folder) / f"{kind}.arl2"
                save = seconds_of(lambda path=path, kind=kind, s=stream: s.save(path, kind), given.repeats)
                rows.append({"model": name, "kind": kind, "bytes": path.stat().st_size, "save_seconds": save})
            stream.close()
            del stream, decoder
            codec = decoder_cache_owner()
            hashing = seconds_of(lambda m=model, c=codec: parts_hash(m, c), given.repeats)
            for row in rows[-2:]:
                path = Path(folder) / f"{row['kind']}.arl2"
                row["load_seconds"] = seconds_of(
                    lambda path=path, row=row, m=model, w=window: bring_back(path, m, w, row["kind"]), given.repeats
                )
                row |= {"hash_seconds": hashing, "decoder_bytes": decoder_bytes}
            del model
    for row in rows:
        print(
            f"{row['model']:24} {row['kind']:5}  {row['bytes'] / 1e6:8.1f} MB   "
            f"save {row['save_seconds'][0]:6.2f} s ({row['save_seconds'][1]:.2f} s of CPU)   "
            f"load {row['load_seconds'][0]:6.2f} s ({row['load_seconds'][1]:.2f} s)   (target: {TARGETS[row['kind']]})"
        )
    print(
        f"once a stream, the model's hash: {rows[0]['hash_seconds'][1]:.2f} s of CPU; the full VAE's decoder adds "
        f"{rows[0]['decoder_bytes'] / 1e9:.2f} GB to an exact snapshot{'' if given.decoder else ' (not in it here)'}; "
        f"peak {peak_bytes() / 1e9:.1f} GB"
    )
    facts = {"benchmark": "snapshots", "decoder": given.decoder, "torch": torch.__version__, "rows": rows}
    print(json.dumps({**facts, "threads": torch.get_num_threads(), "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
