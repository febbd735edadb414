"""A stream that runs and runs: does its memory grow, does it slow down, does it stay finite, does it survive kill -9?

    python benchmarks/soak.py --model tiny --blocks 10000
    python benchmarks/soak.py --model shapes --blocks 2000 --kills 200

The stream is not left alone: every 20 blocks its prompt changes (each way in turn), every 30 it is rewound, every 50
forked and saved. Resident memory is read after block 50 and at the end. Time a block is that of the old stream against
a young one's, in windows of blocks that take turns, so that other work on the machine slows both. Prints the figures,
then one line of JSON; ``--series`` writes what a plot needs: resident megabytes and the CPU milliseconds of a block,
medians of a hundredth of the run each.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.settings import CHANGE_MODES, GenerationSettings
from arl2.shapes.codec import GroupCodec
from arl2.shapes.prompts.text import ShapesText
from arl2.streams.stream import Stream

PROMPTS = ("a red circle moves right on navy", "a blue square moves up on white", "a green triangle bounces on beige")
WARM_UP = 50
WINDOW, TURNS = 5, 40  # blocks of a window, windows of each stream


def tiny_pipeline(plan: str = "HSHS") -> ARL2Pipeline:
    """Random weights: by default two hybrid layers, two softmax layers with a window and a sink."""
    torch.manual_seed(0)
    text = ShapesText.build(width=16)
    model = CausalWanTransformer3DModel(
        plan,
        2,
        12,
        48,
        in_channels=4,
        out_channels=4,
        freq_dim=16,
        text_dim=16,
        text_len=text.length,
        sink=1,
        window=9,
    )
    codec = GroupCodec(latent_channels=4, width=8, deep_width=8)
    codec.init_weights(torch.Generator().manual_seed(0))
    settings = GenerationSettings(steps=(1000, 500), window=9, height=32, width=32)
    return ARL2Pipeline(model.eval(), codec.eval(), text, settings)


def pipeline(name: str) -> ARL2Pipeline:
    """By the name of the option."""
    return tiny_pipeline() if name == "tiny" else ARL2Pipeline.from_pretrained("shapes")


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def next_finite(stream: Stream) -> None:
    """One block; ends the program if it has NaN or infinity."""
    block = next(stream)
    if not bool(block.video.isfinite().all() and block.latents.isfinite().all()):
        raise SystemExit(f"Block {block.index} is not finite.")


Series = list[tuple[int, float, float]]


def soak(pipe: ARL2Pipeline, blocks: int, folder: Path) -> tuple[dict[str, float], Series]:
    """Blocks and all that can happen between them; then old against young."""
    stream = pipe.stream(PROMPTS[0], seed=0)
    resident = {}
    made, started = 0, time.perf_counter()
    series: Series = []
    spans: list[float] = []
    while made < blocks:
        begun = time.process_time()
        next_finite(stream)
        spans.append(time.process_time() - begun)
        made += 1
        if made % max(1, blocks // 100) == 0:
            series.append((made, resident_bytes() / 1e6, 1e3 * statistics.median(spans)))
            spans.clear()
        if made % 20 == 0:
            change = made // 20
            stream.change_prompt(PROMPTS[change % len(PROMPTS)], CHANGE_MODES[change % len(CHANGE_MODES)])
        if made % 30 == 0:
            stream.rewind(3)
        if made % 50 == 0:
            stream.fork().close()
            stream.save(folder / "soak.arl2", "exact" if made % 100 else "light")
        if made == WARM_UP:
            resident["resident_at_50"] = resident_bytes()
        if made % 1000 == 0:
            print(f"{made} blocks, {resident_bytes() / 1e6:.1f} MB, {time.perf_counter() - started:.0f} s", flush=True)
    resident["resident_at_the_end"] = resident_bytes()
    young = pipe.stream(PROMPTS[0], seed=1)
    for _ in range(WARM_UP):
        next_finite(young)
    times: dict[str, list[float]] = {"young": [], "old": []}
    for _ in range(TURNS):
        for name, one in (("young", young), ("old", stream)):
            begun = time.process_time()
            for _ in range(WINDOW):
                next_finite(one)
            times[name].append((time.process_time() - begun) / WINDOW)
    medians = {f"{name}_block_seconds": statistics.median(values) for name, values in times.items()}
    ratio = statistics.median(old / young for old, young in zip(times["old"], times["young"], strict=True))
    return {"index_at_the_end": stream.index, **resident, **medians, "old_over_young": ratio}, series


def save_for_ever(model: str, path: Path, answer: Connection) -> None:
    """Resume and save once, say so, and go on saving until killed."""
    torch.set_num_threads(1)
    stream = pipeline(model).resume(path)
    next(stream)
    stream.save(path)
    answer.send(stream.index)
    while True:
        stream.save(path)


def kill(model: str, kills: int, folder: Path) -> dict[str, int]:
    """Kill processes at random moments of their saving; what is there must resume, every time."""
    path, draw = folder / "killed.arl2", random.Random(0)
    pipe = pipeline(model)
    stream = pipe.stream(PROMPTS[0], seed=0)
    next(stream)
    stream.save(path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["arl2.pipeline.pipeline", "arl2.shapes.prompts.text", "arl2.shapes.codec"])
    index = 1
    for number in range(kills):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=save_for_ever, args=(model, path, sending))
        process.start()
        sending.close()  # or nobody would tell that it died
        told = receiving.recv()
        time.sleep(0.1 * draw.random())
        process.kill()
        process.join()
        receiving.close()
        index = pipe.resume(path).index
        if told != number + 2 or index != told:
            raise SystemExit(f"After kill {number} the snapshot stands at {index}, but {told} was saved.")
    in_the_middle = len(list(folder.glob(".killed.arl2.*.part")))
    return {"kills": kills, "in_the_middle_of_a_file": in_the_middle, "resumed": kills}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", choices=("tiny", "shapes"))
    parser.add_argument("--blocks", type=int, help="default: 10000 of the tiny model, 2000 of shapes")
    parser.add_argument("--kills", type=int, default=0, help="processes to kill while they save (default: none)")
    parser.add_argument("--series", type=Path, metavar="FILE", help="where to write block, megabytes, milliseconds")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    blocks = given.blocks or {"tiny": 10_000, "shapes": 2_000}[given.model]
    if blocks < WARM_UP:
        raise SystemExit(f"Give at least {WARM_UP} blocks.")
    facts = {"benchmark": "soak", "model": given.model, "blocks": blocks, "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        figures, series = soak(pipeline(given.model), blocks, Path(folder))
        if given.series:
            given.series.write_text(json.dumps(series) + "\n")
        print(
            f"{blocks} blocks, all finite. Resident memory {figures['resident_at_50'] / 1e6:.1f} MB after block "
            f"{WARM_UP}, {figures['resident_at_the_end'] / 1e6:.1f} MB at the end. A block takes "
            f"{1e3 * figures['young_block_seconds']:.2f} ms of CPU in a young stream, "
            f"{1e3 * figures['old_block_seconds']:.2f} ms in the old one (median of ratios "
            f"{figures['old_over_young']:.3f})."
        )
        if given.kills:
            killed = kill(given.model, given.kills, Path(folder))
            print(f"{given.kills} kills, {killed['in_the_middle_of_a_file']} in the middle of a file: all resumed.")
            figures |= killed
    print(json.dumps({**facts, **figures}))


if __name__ == "__main__":
    main()
