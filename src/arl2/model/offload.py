"""Layers whose weights wait in the machine's memory, each copied to the device while the layer before it computes.

Two slots on the device hold the weights of two layers. All passes go through the layers in the same order, so the next
one is always known: it is copied into the other slot, on a queue beside the one that computes, and after the last layer
comes the first one of the next pass. Events order the two queues, the host never waits. All weights of a layer are one
piece of page-locked memory, so they are one copy.

The group offloading of diffusers works by hooks around ``forward``. A layer of a stream is entered through ``stream``
and ``commit`` as well, and its hooks make the host wait at every layer.
"""

import copy
import logging
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from arl2.errors import ConfigError
from arl2.model.layer import TransformerLayer

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)
Mark = Any
"""A point in a queue of the device's work: an event, or None where work is done at once."""

SLOTS = 2
_ALIGNED = 256  # bytes: where tensors of a piece begin, as allocators of GPUs do it


@runtime_checkable
class Transfers(Protocol):
    """Copies to a device beside its computing."""

    def lock_pages(self, host: Tensor) -> Callable[[], None] | None:
        """Let the device read a piece of the machine's memory while the host does other things; what undoes it."""

    def keep(self, slot: Tensor) -> None:
        """The memory of ``slot`` is not to be used by others while a copy into it is under way."""

    def start(self, target: Tensor, source: Tensor, *, after: Mark) -> Mark:
        """Queue a copy to the device that begins once the computing has come to ``after``; the end of the copy."""

    def mark(self) -> Mark:
        """Where the computing that has been queued until now ends."""

    def wait(self, mark: Mark) -> None:
        """What is computed from now on waits for ``mark``; the host does not."""


class DirectTransfers:
    """Copies at once, in order: for a device without queues, such as a CPU that stands in for one that has them."""

    def lock_pages(self, host: Tensor) -> Callable[[], None] | None:
        return None

    def keep(self, slot: Tensor) -> None:
        pass

    def start(self, target: Tensor, source: Tensor, *, after: Mark) -> Mark:
        target.copy_(source)
        return None

    def mark(self) -> Mark:
        return None

    def wait(self, mark: Mark) -> None:
        pass


class QueuedTransfers:
    """Copies on a queue (``torch.cuda.Stream``, ``torch.xpu.Stream``) of their own.

    Args:
        device: with queues.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._backend = torch.get_device_module(device)
        self._queue = self._backend.Stream(device)

    def lock_pages(self, host: Tensor) -> Callable[[], None] | None:
        # torch's own page-locked memory comes in powers of two: 40 GB for the 28 of a 14B model.
        if self._device.type != "cuda":
            return None
        runtime, address, queue = torch.cuda.cudart(), host.data_ptr(), self._queue
        failed = int(runtime.cudaHostRegister(address, host.nbytes, 1))  # 1: for every device
        if failed:
            logger.warning(
                "The memory of offloaded layers cannot be page-locked (CUDA error %d): copies will not overlap with "
                "computing, so passes are slower.",
                failed,
            )
            with suppress(RuntimeError):  # CUDA says it again at the next kernel, and then forgets it
                torch.zeros(1, device=self._device)
            return None

        def unlock() -> None:
            queue.synchronize()
            runtime.cudaHostUnregister(address)

        return unlock

    def keep(self, slot: Tensor) -> None:
        slot.record_stream(self._queue)

    def start(self, target: Tensor, source: Tensor, *, after: Mark) -> Mark:
        self._queue.wait_event(after)
        with self._backend.stream(self._queue):
            target.copy_(source, non_blocking=True)
        return self._queue.record_event()

    def mark(self) -> Mark:
        return self._backend.current_stream(self._device).record_event()

    def wait(self, mark: Mark) -> None:
        self._backend.current_stream(self._device).wait_event(mark)


class LayerStack(nn.ModuleList):
    """The layers of a transformer, all on its device, or offloaded."""

    def __init__(self, layers: Iterable[TransformerLayer] = ()) -> None:
        super().__init__(layers)
        self._offloaded: _Offloaded | None = None

    def __iter__(self) -> Iterator[TransformerLayer]:
        return iter(cast(list[TransformerLayer], list(self._modules.values())))

    @property
    def is_offloaded(self) -> bool:
        """Whether the weights wait in the machine's memory."""
        return self._offloaded is not None

    def offload(self, device: torch.device | str, transfers: Transfers | None = None) -> None:
        """Keep the weights in the machine's memory, and two layers of them on ``device``.

        Parameters stay what they are, on the CPU: they can be read, saved and hashed. The layers' own (modulations,
        which a pass takes of all layers at once) move to the device. For inference alone.

        Args:
            device: where the layers compute: CUDA or XPU; a CPU stands in for one, with copies in its own memory.
            transfers: how weights are copied; None: as fits the device.

        Raises:
            ConfigError: a device that has no memory of its own, or layers that are offloaded already.
        """
        device = torch.device(device)
        if self._offloaded is not None:
            raise ConfigError(f"The layers are offloaded from {self._offloaded.device} already; load the model again.")
        if device.type not in ("cuda", "xpu", "cpu"):
            raise ConfigError(f"Layers are offloaded from cuda or xpu; {device} shares its memory with the CPU.")
        if transfers is None:
            transfers = DirectTransfers() if device.type == "cpu" else QueuedTransfers(device)
        self._offloaded = _Offloaded(list(self), device, transfers)

    def in_turn(self) -> AbstractContextManager[Iterable[TransformerLayer]]:
        """One pass: the layers in order, each with its weights on the device until the next one is asked for.

        Offloaded layers take one pass at a time: another thread waits until the ``with`` is left.

        Raises:
            ConfigError: gradients are on, or weights were replaced, and the layers are offloaded.
        """
        if self._offloaded is None:
            return nullcontext(list(self))
        return self._offloaded.in_turn()

    def _apply(self, fn: Any, recurse: bool = True) -> "LayerStack":
        """What moves or casts a module; offloaded layers stay where they are."""
        if self._offloaded is None:
            return cast(LayerStack, super()._apply(fn, recurse))
        self.require_stays(fn)
        return self

    def require_stays(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Refuse to move or cast offloaded layers.

        Raises:
            ConfigError: ``fn`` does so.
        """
        if self._offloaded is None:
            return
        for dtype in {parameter.dtype for parameter in self.parameters()}:
            probe = torch.empty(1, device=self._offloaded.device, dtype=dtype)
            moved = fn(probe)
            if (moved.device, moved.dtype) != (probe.device, probe.dtype):
                raise ConfigError(
                    f"The layers are offloaded from {probe.device}, so they cannot be moved or cast; load the model "
                    "again."
                )

    def forget_twins(self) -> None:
        """After a setting of layers has changed: those in the slots are made again."""
        if self._offloaded is not None:
            self._offloaded.forget_twins()


@dataclass
class _Slot:
    """Memory on the device for one layer.

    Attributes:
        memory: bytes.
        holds: number of the layer that is in it, or on its way.
        version: of that layer's weights.
        arrived: the end of the copy.
        used: the end of the computing that reads it.
    """

    memory: Tensor
    used: Mark
    holds: int | None = None
    version: tuple[int, ...] = ()
    arrived: Mark = None
    layers: dict[int, TransformerLayer] = field(default_factory=dict)


class _Offloaded:
    """The weights of layers in pieces of the machine's memory, and the slots."""

    def __init__(self, layers: list[TransformerLayer], device: torch.device, transfers: Transfers) -> None:
        self.device = device
        self._layers, self._transfers = layers, transfers
        self._turn = threading.Lock()
        for layer in layers:
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.to(device)
        self._pieces = [self._packed(layer) for layer in layers]
        largest = max(piece.nbytes for piece in self._pieces)
        self._slots = []
        for _ in range(min(SLOTS, len(layers))):
            memory = torch.empty(largest, dtype=torch.uint8, device=device)
            transfers.keep(memory)
            # The memory may have been another tensor's, which computing that is queued still reads.
            self._slots.append(_Slot(memory, used=transfers.mark()))

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise ConfigError("A model with offloaded layers cannot be copied or pickled; load it again.")

    @contextmanager
    def in_turn(self) -> Iterator[Iterable[TransformerLayer]]:
        if torch.is_grad_enabled():
            raise ConfigError(
                "Layers are offloaded, which works without gradients alone; use torch.no_grad(), or a model that is "
                "not offloaded."
            )
        with self._turn, closing(self._one_after_the_other()) as layers:
            yield layers

    def _one_after_the_other(self) -> Generator[TransformerLayer, None, None]:
        now = self._fetch(0, beside=None)
        for number in range(len(self._layers)):
            following = self._fetch((number + 1) % len(self._layers), beside=now)
            self._transfers.wait(now.arrived)
            self._transfers.wait(now.used)  # of another queue, should passes come from several
            try:
                yield self._layer_in(now, number)
            finally:
                now.used = self._transfers.mark()
            now = following

    def _fetch(self, number: int, *, beside: _Slot | None) -> _Slot:
        """The slot with a layer; if none has it, the copy is queued into one other than ``beside``."""
        version = self._version(number)
        for slot in self._slots:
            if slot.holds == number and slot.version == version:
                return slot
        slot = next(slot for slot in self._slots if slot is not beside or len(self._slots) == 1)
        piece = self._pieces[number]
        slot.holds = None  # should the copy fail
        slot.arrived = self._transfers.start(slot.memory[: piece.nbytes], piece, after=slot.used)
        slot.holds, slot.version = number, version
        return slot

    def _layer_in(self, slot: _Slot, number: int) -> TransformerLayer:
        """The layer with its parameters in a slot; made once, it takes no memory."""
        if number not in slot.layers:
            layer = self._layers[number]
            own = _tensors_of(layer)
            views = zip(own, _views(slot.memory, own), strict=True)
            slot.layers[number] = _twin(layer, {tensor: _like(tensor, view) for tensor, view in views})
        return slot.layers[number]

    def forget_twins(self) -> None:
        for slot in self._slots:
            slot.layers.clear()

    def _packed(self, layer: TransformerLayer) -> Tensor:
        """All weights of a layer in one piece of the machine's memory, in which its own tensors lie from now on."""
        own = _tensors_of(layer)
        piece = torch.empty(piece_bytes(tensor.nbytes for tensor in own), dtype=torch.uint8, device="cpu")
        for tensor, view in zip(own, _views(piece, own), strict=True):
            view.copy_(tensor.detach())
            tensor.data = view
        unlock = self._transfers.lock_pages(piece)
        if unlock is not None:
            # While the piece is still there; not at the end of the process, when CUDA may be gone.
            weakref.finalize(self, unlock).atexit = False
        return piece

    def _version(self, number: int) -> tuple[int, ...]:
        """Changes with every write to a layer's weights.

        Raises:
            ConfigError: the weights lie elsewhere.
        """
        own, place = _tensors_of(self._layers[number]), self._pieces[number].untyped_storage()._cdata
        if any(tensor.untyped_storage()._cdata != place for tensor in own):
            raise ConfigError(
                f"Weights of layer {number} were replaced after the layers were offloaded; load the model again, and "
                "change weights before layers are offloaded."
            )
        return tuple(0 if tensor.is_inference() else tensor._version for tensor in own)


def piece_bytes(sizes: Iterable[int]) -> int:
    """Bytes of the piece that holds the weights of a layer, from the bytes of its tensors: each begins aligned."""
    return sum(_rounded(size) for size in sizes)


def _rounded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _tensors_of(layer: nn.Module) -> list[Tensor]:
    """All but the layer's own."""
    return [tensor for part in layer.children() for tensor in (*part.parameters(), *part.buffers())]


def _views(memory: Tensor, tensors: list[Tensor]) -> Iterator[Tensor]:
    """Places for tensors in a piece or a slot, in their dtypes and shapes."""
    start = 0
    for tensor in tensors:
        yield memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        start += _rounded(tensor.nbytes)


def _twin(module: Module, placed: Mapping[Tensor, Tensor]) -> Module:
    """A module like another one, with other tensors where they are given; all else, hooks as well, is shared."""
    twin = copy.copy(module)
    twin._parameters = {name: _placed(tensor, placed) for name, tensor in module._parameters.items()}
    twin._buffers = {name: _placed(tensor, placed) for name, tensor in module._buffers.items()}
    twin._modules = {name: None if part is None else _twin(part, placed) for name, part in module._modules.items()}
    return twin


def _placed(tensor: Any, placed: Mapping[Tensor, Tensor]) -> Any:
    return placed.get(tensor, tensor)


def _like(tensor: Tensor, view: Tensor) -> Tensor:
    return nn.Parameter(view, requires_grad=False) if isinstance(tensor, nn.Parameter) else view
