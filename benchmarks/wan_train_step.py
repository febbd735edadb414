"""One optimisation step of each conversion stage at Wan 2.1's full width, random weights: does it fit, how long?

    python benchmarks/wan_train_step.py --plan HH --threads 2

The teacher is written to a folder in bfloat16 and read from there; then the real task of the stage and the real loop
take one step on a random clip: bfloat16 compute with float32 masters, activations computed again in the backward pass.
Each stage runs in a process of its own, whose peak of resident memory is compared with what ``--dry-run`` would say.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from arl2.attention.memory import MemoryGeometry
from arl2.geometry import token_grid
from arl2.model.precision import cast_model
from arl2.model.presets import preset_config
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.rollout.settings import GenerationSettings
from arl2.training.conversion.align import AlignConfig, AlignTask
from arl2.training.conversion.batches import TrainingClips
from arl2.training.conversion.distill import DistillConfig, DistillTask
from arl2.training.conversion.estimate import estimate_step
from arl2.training.conversion.students import load_teacher
from arl2.training.conversion.trainable import parameter_table
from arl2.training.engine.loop import LoopConfig, train
from arl2.training.engine.progress import read_metrics

STRIDE = 8  # pixels a latent, of Wan's codec
STAGES = ("align", "distill")


class RandomClips:
    """Two clips of random latents and prompts: one to train on, and one to be held out."""

    def __init__(self, latent_shape: tuple[int, int, int, int], words: int, text_width: int) -> None:
        self.latent_shape, self.words, self.text_width = latent_shape, words, text_width

    def __len__(self) -> int:
        return 2

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, list[str]]:
        """Clips by number, each from a generator of its own."""
        draws = [torch.Generator().manual_seed(i) for i in indices]
        latents = torch.stack([torch.randn(self.latent_shape, generator=draw) for draw in draws])
        text = torch.stack([torch.randn(self.words, self.text_width, generator=draw) for draw in draws])
        return latents, text, [f"clip {i}" for i in indices]


def write_teacher(folder: Path, given: argparse.Namespace) -> None:
    """A softmax model of the preset's width with random weights: all that a step reads of a pipeline's folder."""
    torch.manual_seed(0)
    layers = len(given.plan)
    model = CausalWanTransformer3DModel(**preset_config(given.preset) | {"layer_plan": "S" * layers, **given.changes})
    cast_model(model, torch.bfloat16).save_pretrained(folder / "transformer")
    settings = GenerationSettings(height=given.height, width=given.width)
    (folder / "generation.json").write_text(json.dumps(settings.to_mapping()))


def one_step(stage: str, given: argparse.Namespace) -> dict[str, object]:
    """Take it; what it took, beside what was estimated."""
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = load_teacher(given.folder / "teacher", device="meta").model
    frames = 2 * sizes.config.block_frames
    height, width = given.height // STRIDE, given.width // STRIDE
    random = RandomClips(
        (sizes.config.in_channels, frames, height, width), sizes.config.text_len, sizes.config.text_dim
    )
    clips = TrainingClips([random], held_out=1, model=sizes, device=device)
    shared = {
        "loop": LoopConfig(steps=1, warmup_steps=0, compute="bfloat16", log_every=1, keep_checkpoints=1),
        "teacher": str(given.folder / "teacher"),
        "plan": given.plan,
        "frames": (frames,),
        "batch_frames": frames,
        "held_out": 1,
        "activation_checkpointing": True,
    }
    config = AlignConfig(**shared) if stage == "align" else DistillConfig(**shared, on_policy_share=0.0)
    task = (
        AlignTask(config, device=device, clips=clips)
        if stage == "align"
        else DistillTask(config, device=device, clips=clips)
    )
    # A step alone is measured: no scores after it and no export.
    task.evaluate = dict
    task.export = lambda folder: None

    before, started = resident(), time.perf_counter()
    train(task, config.loop, given.folder / stage, run_config={}, console=Console(quiet=True))
    seconds = time.perf_counter() - started
    record = next(one for one in read_metrics(given.folder / stage / "metrics.jsonl") if "loss" in one)
    grid = token_grid(height, width, tuple(sizes.config.patch_size))
    estimate = estimate_step(
        task.teacher.model.config,
        task.student.config,
        parameter_table(task.student, 1 if stage == "align" else 2),
        MemoryGeometry(1, grid.rows, grid.columns, sizes.config.block_frames),
        frames=frames,
        first_block_frames=None,
        checkpointing=True,
        layers_alone=stage == "align",
        compute="bfloat16",
    )
    return {
        "stage": stage,
        "loss": record["loss"],
        "gradient_norm": record["gradient_norm"],
        "tokens": estimate.tokens,
        "seconds": seconds,
        "tflop": estimate.flops / 1e12,
        "resident_before_bytes": before,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else resident(),
        "estimated_bytes": estimate.memory_bytes,
        "trained_parameters": sum(p.numel() for p in task.trained.values()),
        "masters": sorted({str(p.dtype) for p in task.trained.values()}),
    }


def resident() -> int:
    """The largest resident size of this process so far, in bytes (weights on disk that it has mapped count too)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(stage: str, given: argparse.Namespace, words: Sequence[str]) -> dict[str, object]:
    """``one_step`` in a process of its own."""
    command = [sys.executable, __file__, *words, "--stage", stage, "--folder", str(given.folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=given.timeout, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def line(found: dict[str, object]) -> str:
    """A step's measurements for people."""
    gigabytes = {name: found[f"{name}_bytes"] / 1e9 for name in ("resident_before", "peak", "estimated")}
    return (
        f"{found['stage']:8s} loss {found['loss']:.6g}, gradient norm {found['gradient_norm']:.4g}; "
        f"{found['tokens']:,} tokens, {found['tflop']:.2f} TFLOP in {found['seconds']:.1f} s "
        f"({1e3 * found['tflop'] / found['seconds']:.0f} GFLOP/s); peak {gigabytes['peak']:.2f} GB "
        f"({gigabytes['resident_before']:.2f} before the step), estimated {gigabytes['estimated']:.2f} GB"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Run and print."""
    words = sys.argv[1:] if words is None else list(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="wan2.1-t2v-1.3b")
    parser.add_argument("--plan", default="HH", help="of the student, one letter a layer, H or S (default: HH)")
    parser.add_argument("--height", type=int, default=480, help="pixels")
    parser.add_argument("--width", type=int, default=832, help="pixels")
    parser.add_argument("--changes", type=json.loads, default={}, metavar="JSON", help="other sizes of the transformer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--timeout", type=float, default=7200, help="seconds for a stage")
    parser.add_argument("--stage", choices=STAGES, help="this one alone, in this process")
    parser.add_argument("--folder", type=Path, help="of teacher and runs (with --stage)")
    given = parser.parse_args(words)
    if given.stage:
        print(json.dumps(one_step(given.stage, given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        given.folder = Path(folder)
        write_teacher(given.folder / "teacher", given)
        results = []
        for stage in STAGES:
            results.append(measured(stage, given, words))
            print(line(results[-1]), flush=True)
    facts = {"plan": given.plan, "threads": given.threads, "cores": os.cpu_count(), "torch": torch.__version__}
    print(json.dumps({"benchmark": "wan_train_step", **facts, "steps": results}))


if __name__ == "__main__":
    main()
