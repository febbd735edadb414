"""Start-up: loading Wan2.1-T2V-1.3B-sized weights beside a plain read of the same bytes, and the memory of both.

    python benchmarks/load.py --folder /tmp/weights

Writes random bfloat16 weights (2.9 GB) into the folder once, as ``.safetensors`` and as an AR ``.pt``. Every
measurement runs in a process of its own and ends when every byte of every tensor has been read; files are in the page
cache, so what is compared is the loader, not the disk.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

PLAIN, OURS = "plain read", "load_transformer"


def write_weights(folder: Path) -> None:
    """Random weights of the real size under the published names."""
    from arl2.checkpoints import export_checkpoint
    from arl2.model.precision import cast_model
    from arl2.model.presets import preset_config
    from arl2.model.transformer import CausalWanTransformer3DModel

    folder.mkdir(parents=True, exist_ok=True)
    if all((folder / name).exists() for name in ("model.safetensors", "model.pt")):
        return
    model = cast_model(CausalWanTransformer3DModel(**preset_config("wan2.1-t2v-1.3b")), torch.bfloat16)
    for name in ("model.safetensors", "model.pt"):
        export_checkpoint(model, folder / name)


def touch(tensors: list[torch.Tensor]) -> int:
    """Read every byte; the count of them."""
    for tensor in tensors:
        tensor.view(torch.uint8 if tensor.dim() == 0 else tensor.dtype).flatten().view(torch.uint8).amax()
    return sum(tensor.nbytes for tensor in tensors)


def measure(what: str, path: Path) -> dict[str, float]:
    """Seconds from path to bytes in memory, in this process."""
    from safetensors.torch import load_file

    from arl2.checkpoints.load import load_transformer

    started = time.perf_counter()
    if what == OURS:
        tensors = list(load_transformer(path, dtype=torch.bfloat16).state_dict().values())
    elif path.suffix == ".pt":
        tensors = list(torch.load(path, weights_only=True, mmap=True)["generator"].values())
    else:
        tensors = list(load_file(path).values())
    size = touch(tensors)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "bytes": size, "peak_bytes": peak}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for 5.7 GB of random weights")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], Path(given.one[1]))))
        return
    write_weights(given.folder)
    results: dict[str, dict[str, float]] = {}
    for name in ("model.safetensors", "model.pt"):
        runs: dict[str, list[dict[str, float]]] = {PLAIN: [], OURS: []}
        for _ in range(given.repeats):  # interleaved: a drift of the machine hits both
            for what, taken in runs.items():
                command = [sys.executable, __file__, "--folder", str(given.folder), "--one", what]
                done = subprocess.run([*command, str(given.folder / name)], capture_output=True, text=True, check=True)
                taken.append(json.loads(done.stdout.splitlines()[-1]))
        plain, ours = (statistics.median(run["seconds"] for run in runs[what]) for what in (PLAIN, OURS))
        peaks = {what: max(run["peak_bytes"] for run in taken) for what, taken in runs.items()}
        results[name] = {"plain_seconds": plain, "seconds": ours, "share_of_plain_speed": plain / ours}
        results[name] |= {"bytes": runs[OURS][0]["bytes"], "peak_bytes": peaks[OURS], "plain_peak_bytes": peaks[PLAIN]}
        size, share = runs[OURS][0]["bytes"] / 1e9, 100 * plain / ours
        print(f"{name:18s} {size:.2f} GB: plain read {plain:.2f} s, load_transformer {ours:.2f} s ({share:.0f} %)")
        print(f"{'':18s} peak {peaks[PLAIN] / 1e9:.2f} GB and {peaks[OURS] / 1e9:.2f} GB")
    print(json.dumps({"benchmark": "load", "torch": torch.__version__, "results": results}))


if __name__ == "__main__":
    main()
