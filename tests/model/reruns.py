"""What stands in for CUDA graphs on a CPU: the pass runs again, and must touch the tensors that it touched before."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Touched(TorchDispatchMode):
    """Addresses of the storages that operations use and that none of them has made, in order of first use."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[int] = []
        self._made: dict[int, Tensor] = {}  # kept alive, so that no address is used twice

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        results = operation(*arguments, **(keywords or {}))
        for given in _tensors((arguments, keywords)):
            address = given.untyped_storage().data_ptr()
            if address not in self._made and address not in self.addresses:
                self.addresses.append(address)
        for made in _tensors(results):
            address = made.untyped_storage().data_ptr()
            if address not in self.addresses:
                self._made[address] = made
        return results


class Reruns:
    """A recorder for any device.

    Attributes:
        recorded, replayed: how many passes.
    """

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        run()  # warms up, as a device would
        expected = _touched(run)
        self.recorded += 1

        def replay() -> None:
            assert _touched(run) == expected, "a recorded pass met a tensor at another place"
            self.replayed += 1

        return replay


def _touched(run: Callable[[], None]) -> list[int]:
    with Touched() as touched:
        run()
    return touched.addresses


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
