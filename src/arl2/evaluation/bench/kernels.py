"""Each operation against its naive twin and the best library that is installed, forward and with its gradient."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from arl2.errors import ConfigError
from arl2.evaluation.bench.gate import KERNEL_LIMITS, relative
from arl2.evaluation.bench.models import ModelSize
from arl2.evaluation.bench.operations import Operation, operations
from arl2.evaluation.bench.options import KernelOptions
from arl2.evaluation.bench.part import Part
from arl2.evaluation.bench.result import Check, Row, Value
from arl2.evaluation.bench.timing import Lap, Timing
from arl2.kernels.backends import ACCEPTED, DELTA_RULE
from arl2.kernels.delta_rule import gated_delta_state

_TINY = {"frames": 2, "rows": 5, "columns": 9, "heads": 2, "head_dim": 32}
_GRADIENT = 3  # times the limit of the forward pass


class KernelsPart(Part[KernelOptions]):
    """See the module."""

    def __init__(self, options: KernelOptions) -> None:
        super().__init__(options)
        self.size = ModelSize.of(options)
        self._laps: dict[str, dict[str, list[Lap]]] = {}
        self._libraries: dict[str, str] = {}
        self._unusable: dict[str, str] = {}

    def gate(self) -> Iterator[Check]:
        for operation in operations(**_TINY, dtype=self.dtype, device=self.device):
            yield from checks_of(operation, KERNEL_LIMITS[self.dtype])

    def measure(self) -> Iterator[str]:
        sizes = self.size.sizes
        for operation in operations(
            frames=sizes.get("block_frames", 3),
            rows=self.size.height // 2,
            columns=self.size.width // 2,
            heads=sizes["num_attention_heads"],
            head_dim=sizes["attention_head_dim"],
            dtype=self.dtype,
            device=self.device,
        ):
            yield from self._timed(operation.name, self._runs(operation))
            if operation.name == "state update":
                yield from self._backends(operation)

    def rows(self) -> Iterator[Row]:
        for name, laps in self._laps.items():
            found = {kind: Timing(tuple(all_laps)) for kind, all_laps in laps.items() if all_laps}
            values: dict[str, Value] = {f"{kind}_seconds": timing for kind, timing in found.items()}
            if "ours" in found:
                for other in ("naive", "library"):
                    if other in found:
                        values[f"over_{other}_times"] = found[other].median / found["ours"].median
            if name in self._libraries:
                values["library"] = self._libraries[name]
            if values:
                yield Row(name, values)

    def notes(self) -> Iterator[str]:
        yield (
            "naive: plain formulas in the same dtype; of the state update an in-place loop over tokens in float32. "
            "trained: forward and backward. Attention whose scores would not fit has no naive time."
        )
        for backend, reason in self._unusable.items():
            yield f"State update, {backend}: not timed ({reason})"

    def _runs(self, operation: Operation) -> dict[str, Callable[[], object]]:
        inputs = operation.inputs
        runs: dict[str, Callable[[], object]] = {"ours": _forward(operation.ours, inputs)}
        if not operation.too_large:
            runs["naive"] = _forward(operation.naive, inputs)
        if operation.library is not None:
            self._libraries[operation.name], call = operation.library
            runs["library"] = _forward(call, inputs)
        if operation.trained:
            runs["trained"] = lambda: gradients(operation.ours, inputs, operation.trained)
        return runs

    def _backends(self, operation: Operation) -> Iterator[str]:
        """Every backend of the state update that this machine can run, beside the one that is chosen."""
        for backend in ACCEPTED[DELTA_RULE]:
            if backend in ("auto", "naive"):
                continue

            def run(backend: str = backend) -> object:
                with torch.no_grad():
                    return gated_delta_state(**operation.inputs, backend=backend)

            try:
                run()
            except ConfigError as error:
                self._unusable[backend] = str(error)
                continue
            yield from self._timed(f"state update, {backend}", {"ours": run})

    def _timed(self, name: str, runs: Mapping[str, Callable[[], object]]) -> Iterator[str]:
        laps = self._laps[name] = {kind: [] for kind in runs}
        for kind, lap in self.watch.interleaved(runs, repeats=self.options.repeats):
            laps[kind].append(lap)
            yield f"{name}: {kind}"


def checks_of(operation: Operation, limit: float) -> Iterator[Check]:
    """The operation, and its gradients, against its twin in float64 on the CPU with the same (rounded) inputs."""
    wide = {name: x.detach().cpu().double() for name, x in operation.inputs.items()}
    with torch.no_grad():
        ours, truth = _outputs(operation.ours(**operation.inputs)), _outputs(operation.naive(**wide))
    worst = max(relative(a, b) for a, b in zip(ours, truth, strict=True))
    yield Check(f"{operation.name}, naive twin", worst, limit)
    if operation.trained:
        ours = gradients(operation.ours, operation.inputs, operation.trained)
        truth = gradients(operation.naive, wide, operation.trained)
        worst = max(relative(a, b) for a, b in zip(ours, truth, strict=True))
        yield Check(f"{operation.name}, gradients", worst, _GRADIENT * limit)


def gradients(run: Callable[..., Any], inputs: Mapping[str, Tensor], wanted: tuple[str, ...]) -> list[Tensor]:
    """Of a fixed weighted sum of all outputs, with respect to the wanted inputs."""
    given = {name: x.detach().requires_grad_(name in wanted) for name, x in inputs.items()}
    outputs = _outputs(run(**given))
    weights = []
    for out in outputs:
        # The same numbers in every dtype and on every device.
        steps = torch.arange(out.numel(), device="cpu", dtype=torch.float32)
        weights.append(steps.sin().view(out.shape).to(out.device, out.dtype))
    return list(torch.autograd.grad(outputs, [given[name] for name in wanted], weights))


def _forward(run: Callable[..., Any], inputs: Mapping[str, Tensor]) -> Callable[[], object]:
    def once() -> object:
        with torch.no_grad():
            return run(**inputs)

    return once


def _outputs(found: Any) -> list[Tensor]:
    return [x for x in tree_leaves(found) if isinstance(x, Tensor)]
