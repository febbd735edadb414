"""Passes recorded as CUDA graphs and replayed: one launch for a whole pass, once every block looks like the last.

A graph reads and writes where it was recorded. So it has a seat: latents, time, rotation, prompt and memory of its own,
which a stream's are copied into and out of. What a stream holds never belongs to a graph; a prompt change, a fork, a
rewind or a resume is a copy.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from arl2.attention.cross import CrossAttentionCache
from arl2.attention.memory import Memory
from arl2.errors import ConfigError, MemoryMismatchError
from arl2.kernels.backends import is_default
from arl2.model.runner import LayeredModel, PassRunner, StreamedBlock

logger = logging.getLogger(__name__)


class RecordingError(Exception):
    """A pass cannot be recorded; the message says why."""


@runtime_checkable
class Recorder(Protocol):
    """Records what runs on a device."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """What replays ``run`` on the same tensors. ``run`` may be called several times first, to warm up.

        Raises:
            RecordingError: something in it cannot be recorded.
        """


class CudaGraphs:
    """Records CUDA graphs, which share one pool of memory: they are never replayed side by side."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        with torch.cuda.device(self._device):
            graph = self._recorded(run)

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay

    def _recorded(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        # On a side stream, as capturing demands. What is chosen or compiled at a first call is so here.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                run()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise RecordingError(f"A pass could not be recorded as a CUDA graph: {reason}.") from error
        return graph


class GraphedRunner(PassRunner):
    """Replays recorded passes where memory is steady; before, and with gradients, ``inner`` runs them.

    Streams of one model take turns: whose memory is on the seat is known, and copied only when another one comes.
    Streams of two shapes have a seat each; of more, the one that was used longest ago goes.

    Args:
        inner: runs what is recorded.
        recorder: of the device.
        is_required: whether a pass that cannot be recorded is an error; otherwise there is a warning, and ``inner``
            runs it from then on.
    """

    def __init__(self, inner: PassRunner, recorder: Recorder, *, is_required: bool = True) -> None:
        self._inner, self._recorder, self._is_required = inner, recorder, is_required
        self._seats: dict[_Shapes, _Seat] = {}  # the last used last
        self._is_refused = False
        self._lock = threading.Lock()

    def __deepcopy__(self, _: object) -> "GraphedRunner":
        """For a copy of the model: graphs are of the weights that they were recorded over."""
        return GraphedRunner(self._inner, self._recorder, is_required=self._is_required)

    def predict(self, model: LayeredModel, block: StreamedBlock, memory: Memory) -> Tensor:
        if self._is_refused or not _is_repeated(block, memory):
            return self._inner.predict(model, block, memory)
        with self._lock:
            try:
                # The next replay overwrites it.
                return self._seated(model, block, memory).predict().clone()
            except RecordingError as error:
                self._refuse(error)
        return self._inner.predict(model, block, memory)

    def commit(self, model: LayeredModel, block: StreamedBlock, memory: Memory) -> None:
        if self._is_refused or not _is_repeated(block, memory):
            self._inner.commit(model, block, memory)
            return
        with self._lock:
            try:
                seat = self._seated(model, block, memory)
                seat.commit(block.frames)
                seat.give_back(memory)
                return
            except RecordingError as error:
                self._refuse(error)
        self._inner.commit(model, block, memory)

    def _seated(self, model: LayeredModel, block: StreamedBlock, memory: Memory) -> "_Seat":
        """The seat, with this block and memory on it."""
        shapes = _Shapes.of(model, block, memory)
        seat = self._seats.pop(shapes, None)
        if seat is None:
            for oldest in list(self._seats)[: 1 - _SEATS or None]:
                del self._seats[oldest]  # its memory is free before the next is made
            seat = _Seat(model, block, memory, self._inner, self._recorder)
        self._seats[shapes] = seat
        seat.take(block, memory)
        return seat

    def _refuse(self, error: "RecordingError") -> None:
        self._seats.clear()
        if self._is_required:
            raise ConfigError(f"{error} Run it with cuda_graphs 'off'.") from error
        self._is_refused = True
        logger.warning("%s Passes run without.", error)


_SEATS = 2


class _Shapes(NamedTuple):
    """What a recorded pass cannot do otherwise."""

    latents: tuple[torch.Size, torch.dtype, torch.device]
    words: torch.Size
    memory: tuple[tuple[str, torch.Size, torch.dtype], ...]
    settings: str
    weights: int

    @staticmethod
    def of(model: LayeredModel, block: StreamedBlock, memory: Memory) -> "_Shapes":
        held = tuple((name, x.shape, x.dtype) for name, x in memory.views().items())
        latents = (block.latents.shape, block.latents.dtype, block.latents.device)
        # What is a list (which frame lies where) changes from block to block; what is not is a setting.
        facts = [
            {name: value for name, value in own.items() if not isinstance(value, list)}
            for own in memory.facts()["layers"]
        ]
        where = model.weights_address()
        return _Shapes(latents, block.words[0].k.shape, held, str(facts), where)


class _Seat:
    """Tensors that never move, and the two passes recorded over them."""

    def __init__(
        self,
        model: LayeredModel,
        block: StreamedBlock,
        memory: Memory,
        inner: PassRunner,
        recorder: Recorder,
    ) -> None:
        self._model, self._inner, self._recorder = weakref.ref(model), inner, recorder
        self._words: Sequence[CrossAttentionCache] = block.words
        with torch.inference_mode(False):  # tensors that a later pass may write in any mode
            self._block = _own_copy(block)
            self._memory = memory.clone()
            self._memory.prepare(block.frames)  # from here on its buffers are its own, and stay where they are
        self._sitting: tuple[weakref.ref[Memory], list[object]] | None = None
        self._predict: Callable[[], None] | None = None
        self._commit: Callable[[], None] | None = None
        self._flow: Tensor | None = None

    def take(self, block: StreamedBlock, memory: Memory) -> None:
        """Copy in what has changed since the last pass."""
        own = self._block
        for kept, given in zip(_of_pass(own), _of_pass(block), strict=True):
            kept.copy_(given)
        if block.words is not self._words:
            for words, theirs in zip(own.words, block.words, strict=True):
                words.k.copy_(theirs.k)
                words.v.copy_(theirs.v)
            self._words = block.words
        if self._sitting is None or self._sitting[0]() is not memory or self._sitting[1] != _versions(memory):
            self._memory.restore(memory.views(), memory.facts())
            self._sitting = weakref.ref(memory), _versions(memory)

    def predict(self) -> Tensor:
        """The flow; the next pass overwrites it."""
        if self._predict is None:
            self._predict = self._recorder.record(self._run_predict)
        self._predict()
        assert self._flow is not None
        return self._flow

    def commit(self, frames: int) -> None:
        """Write the seat's memory; whatever breaks off here, the next pass copies a stream's memory in again."""
        self._sitting = None
        if self._commit is None:
            before, facts = self._memory.tensors(), self._memory.facts()
            self._commit = self._recorder.record(self._run_commit)
            self._memory.restore(before, facts)  # as it was before the warm-up wrote it
        self._commit()
        self._memory.advance(frames)

    def give_back(self, memory: Memory) -> None:
        """A stream's memory becomes what the seat's is."""
        memory.restore(self._memory.views(), self._memory.facts())
        self._sitting = weakref.ref(memory), _versions(memory)

    def _run_predict(self) -> None:
        with torch.inference_mode(False), torch.no_grad():
            flow = self._inner.predict(self._own_model(), self._block, self._memory)
            if self._flow is None:
                self._flow = torch.empty_like(flow)
            self._flow.copy_(flow)

    def _run_commit(self) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self._inner.write_all(self._own_model(), self._block, self._memory)

    def _own_model(self) -> LayeredModel:
        model = self._model()
        if model is None:
            raise MemoryMismatchError("The model of these recorded passes is gone; make the pipeline again.")
        return model


def _is_repeated(block: StreamedBlock, memory: Memory) -> bool:
    """Whether the next block will look like this one."""
    return (
        block.frames == memory.geometry.block_frames
        and memory.is_steady
        and is_default()
        and not torch.is_grad_enabled()
    )


def _own_copy(block: StreamedBlock) -> StreamedBlock:
    return StreamedBlock(
        block.latents.clone(),
        block.time.clone(),
        block.modulations.clone(),
        [CrossAttentionCache(one.k.clone(), one.v.clone()) for one in block.words],
        block.rotation.clone(),
        block.rows,
        block.columns,
    )


def _of_pass(block: StreamedBlock) -> tuple[Tensor, ...]:
    """What is another one in every pass."""
    return block.latents, block.time, block.modulations, block.rotation.cos, block.rotation.sin


def _versions(memory: Memory) -> list[object]:
    """Position, where each tensor is and how often it was written: equal as long as nothing has changed."""
    # Tensors made in inference mode do not count their writes: never equal to anything.
    counts = ((x.data_ptr(), object() if x.is_inference() else x._version) for x in memory.views().values())
    return [memory.frames, memory.start, *counts]
