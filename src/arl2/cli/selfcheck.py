"""``arl2 selfcheck``: does this machine compute what the published code computed?"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from rich.console import Console

from arl2.cli.options import Command
from arl2.cli.threads import use_threads
from arl2.model.execution import Compile, Execution, Graphs

# Written out here so that `arl2 --help` needs no torch; a test holds them against the library's own lists.
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
Backend = Literal["auto", "naive", "chunked", "blockwise", "triton", "fla"]
DTYPES, BACKENDS = get_args(Dtype), get_args(Backend)


@dataclass(frozen=True, kw_only=True)
class Selfcheck(Command):
    """Compare this machine with reference outputs of the published code.

    Runs reference rollouts through the public API and compares every tensor. Exit code 1 if any is over its limit.

    Attributes:
        goldens: Folder of reference outputs (default: the packaged set).
        device: Where to run: auto, cpu, cuda, cuda:1, xpu, mps (default: auto, a GPU if there is one).
        dtype: Precision to compute in.
        backend: Delta-rule kernel.
        compile: Whether layers are compiled with torch.compile, and by what.
        cuda_graphs: Whether passes are recorded as CUDA graphs.
        round_trip: Save each model with save_pretrained and load it back first.
        threads: CPU threads (default: all cores).
        quiet: Print failures and the summary only.
        as_json: Print JSON instead of lines.
    """

    examples: ClassVar = ("arl2 selfcheck", "arl2 selfcheck --device cuda --dtype bf16 --json")
    goldens: Path | None = None
    device: str = "auto"
    dtype: Dtype = "float32"
    backend: Backend = "auto"
    compile: Compile = "auto"
    cuda_graphs: Graphs = "auto"
    round_trip: bool = False
    threads: int | None = None
    quiet: bool = False
    as_json: bool = False

    def run(self) -> int:
        """Print one line per tensor; 1 if any is over its limit."""
        import torch

        from arl2.evaluation.goldens import packaged_goldens
        from arl2.evaluation.selfcheck import selfcheck
        from arl2.pipeline.devices import checked_device

        use_threads(self.threads)
        console = Console(highlight=False)
        device = checked_device(self.device)
        execution = Execution(compile=self.compile, cuda_graphs=self.cuda_graphs)
        execution.check(torch.device(device))
        checks = []
        for check in selfcheck(
            self.goldens or packaged_goldens(),
            device=device,
            dtype=getattr(torch, self.dtype),
            backend=self.backend,
            execution=execution,
            round_trip=self.round_trip,
        ):
            checks.append(check)
            if self.as_json or (check.passed and self.quiet):
                continue
            verdict = "[green]ok  [/]" if check.passed else "[bold red]OVER[/]"
            console.print(f"{verdict} {check.name:<60} {check.error:9.2e}  limit {check.limit:.0e}", soft_wrap=True)
        failed = [check for check in checks if not check.passed]
        worst = max(checks, key=lambda check: check.error / check.limit)
        if self.as_json:
            facts = {"device": device, "dtype": self.dtype, "failed": len(failed), "worst": worst.name}
            print(json.dumps({**facts, "checks": [asdict(check) | {"passed": check.passed} for check in checks]}))
        else:
            console.print(
                f"{len(checks) - len(failed)} of {len(checks)} tensors within their limit on {device} in {self.dtype} "
                f"(nearest to it: {worst.name}, {worst.error:.2e} of {worst.limit:.0e})",
                soft_wrap=True,
            )
        return 1 if failed else 0
