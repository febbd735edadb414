"""Offloaded layers: the same bits, two layers at most on the device, an order that no timing of copies can break."""

import copy
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from arl2.attention import projections
from arl2.attention.memory import Memory
from arl2.errors import ConfigError
from arl2.model.execution import Execution
from arl2.model.offload import Mark, QueuedTransfers
from arl2.model.passes import DiffusionForcing, TeacherForcing
from arl2.model.precision import cast_model
from arl2.model.runner import PassRunner
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.placement import offload_transformer
from support import randn, tiny_model

PLANS = ["H", "SH", "HHSSH"]
LATENTS = (2, 3, 2, 4, 6)


class Recorded:
    """Copies as late, or as early, as the marks allow; what a slot holds before its copy is done is NaN.

    The copy of a late queue is done when computing waits for it, the last moment that is right. An early one is done at
    once, and so must follow a mark of all computing that reads the slot.
    """

    def __init__(self, *, late: bool = False) -> None:
        self.late = late
        self.log: list[tuple[Any, ...]] = []
        self.pending: dict[int, tuple[Tensor, Tensor]] = {}
        self.locked: list[int] = []
        self.kept: list[int] = []

    def lock_pages(self, host: Tensor) -> None:
        self.locked.append(host.nbytes)

    def keep(self, slot: Tensor) -> None:
        self.kept.append(slot.data_ptr())

    def start(self, target: Tensor, source: Tensor, *, after: Mark) -> Mark:
        number = len(self.log)
        self.log.append(("copy", self.kept.index(target.data_ptr()), after))
        target.fill_(0xFF)  # NaN in every floating-point dtype
        self.pending[number] = (target, source)
        if not self.late:
            self._finish(number)
        return number

    def mark(self) -> Mark:
        self.log.append(("mark",))
        return len(self.log) - 1

    def wait(self, mark: Mark) -> None:
        self.log.append(("wait", mark))
        self._finish(mark)

    def _finish(self, number: int) -> None:
        if number in self.pending:
            target, source = self.pending.pop(number)
            target.copy_(source)


def outcome(model: CausalWanTransformer3DModel, blocks: int = 3) -> list[Tensor]:
    """Flows of a few blocks, then everything remembered."""
    with torch.no_grad():
        text = model.prompt_context(randn(2, 5, 10, seed=7))
        memory = model.allocate_memory(batch=2, height=4, width=6, window=4)
        flows = []
        for block in range(blocks):
            x = randn(*LATENTS, seed=block)
            flows.append(model.predict(x, torch.full((2, 2), 700.0), text, memory))
            model.commit(x, torch.zeros(2, 2), text, memory)
    return [*flows, *memory.tensors().values()]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_streams_have_the_same_bits(plan, late):
    model = tiny_model(plan)
    expected = outcome(model)
    model.layers.offload("cpu", Recorded(late=late))
    assert same(outcome(model), expected)
    assert same(outcome(model), expected)  # from where the first pass left the slots


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_queues_and_in_mixed_precision(dtype):
    model = cast_model(tiny_model("SHH"), dtype)
    expected = outcome(model)
    model.layers.offload("cpu")
    assert model.layers.is_offloaded
    assert same(outcome(model), expected)


@pytest.mark.parametrize("run", [DiffusionForcing(), TeacherForcing(randn(2, 3, 4, 4, 6, seed=3))])
def test_a_whole_clip_is_the_same_but_for_rounding(run):
    """Slots lie elsewhere than the weights did, and alignment decides by which kernel a larger product is computed."""
    model = tiny_model("HSH")
    arguments = randn(2, 3, 4, 4, 6), torch.full((2, 4), 500.0), randn(2, 5, 10)
    with torch.no_grad():
        expected = model(*arguments, run=run)
        model.layers.offload("cpu", Recorded(late=True))
        torch.testing.assert_close(model(*arguments, run=run), expected, atol=1e-5, rtol=1e-5)


# The schedule.


def passed(model: CausalWanTransformer3DModel, log: list[tuple[Any, ...]]) -> list[int]:
    """Slots of the layers of one pass, whose computing is in the log, too."""
    slots = []
    with torch.no_grad(), model.layers.in_turn() as layers:
        for layer in layers:
            slot = layer.cross_norm.weight.untyped_storage().data_ptr()
            slots.append(slot)
            log.append(("compute", slot))
    return slots


@pytest.mark.parametrize("plan", ["SHHS", "HHSSH"])
def test_the_next_layer_is_on_its_way_before_a_layer_computes(plan):
    model, queue = tiny_model(plan), Recorded()
    model.layers.offload("cpu", queue)
    first = len(queue.log)
    passed(model, queue.log)
    again = len(queue.log)
    passed(model, queue.log)
    whole = [entry[0] for entry in queue.log[first:again]]
    # Layer 0 is not there yet in the first pass. From the second on, it came while the last layer computed.
    each = ["copy", "wait", "wait", "compute", "mark"]
    assert whole == ["copy", *each * len(plan)]
    assert [entry[0] for entry in queue.log[again:]] == each * len(plan)


@pytest.mark.parametrize("plan", ["SHHS", "HHSSH"])
def test_a_slot_is_filled_after_all_that_reads_it_and_read_after_it_is_filled(plan):
    model, queue = tiny_model(plan), Recorded()
    model.layers.offload("cpu", queue)
    for _ in range(3):
        passed(model, queue.log)
    names = {address: number for number, address in enumerate(queue.kept)}
    computed: dict[int, int] = {}  # by slot, the last entry that reads it
    copied: dict[int, int] = {}
    for number, entry in enumerate(queue.log):
        if entry[0] == "copy":
            _, slot, after = entry
            assert queue.log[after] == ("mark",)
            assert after > computed.get(slot, -1)
            copied[slot] = number
        elif entry[0] == "compute":
            slot = names[entry[1]]
            computed[slot] = number
            assert ("wait", copied[slot]) in queue.log[copied[slot] : number]


@pytest.mark.parametrize(("plan", "slots"), [("H", 1), ("SH", 2), ("SHHS", 2), ("HHSSH", 2)])
def test_two_layers_at_most_are_on_the_device(plan, slots):
    model, queue = tiny_model(plan), Recorded()
    weights = [sum(p.nbytes for name, p in layer.named_parameters() if name != "modulation") for layer in model.layers]
    model.layers.offload("cpu", queue)
    assert set(passed(model, queue.log)) == set(queue.kept)
    assert len(queue.kept) == slots
    # The pieces are as large as the weights, but for the alignment of each tensor.
    for size, piece, layer in zip(weights, queue.locked, model.layers, strict=True):
        assert size <= piece < size + 256 * len(list(layer.parameters()))
    if len(plan) <= 2:
        copies = [entry for entry in queue.log if entry[0] == "copy"]
        passed(model, queue.log)
        assert [entry for entry in queue.log if entry[0] == "copy"] == copies  # all stay there


def test_layers_of_one_size_stand_in_alternating_slots():
    model, queue = tiny_model("HHHH"), Recorded()
    model.layers.offload("cpu", queue)
    a, b, *rest = passed(model, queue.log)
    assert a != b
    assert rest == [a, b]
    # Addresses repeat from pass to pass.
    assert passed(model, queue.log) == [a, b, a, b]


class Backend:
    """What ``torch.cuda`` offers of queues, writing down what is asked of it."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.computing = self.Stream("cpu")

    class Queue:
        def __init__(self, backend: "Backend", name: str) -> None:
            self.backend, self.name = backend, name

        def wait_event(self, event: int) -> None:
            self.backend.log.append((self.name, "waits for", event))

        def record_event(self) -> int:
            self.backend.log.append((self.name, "records"))
            return len(self.backend.log) - 1

    def Stream(self, device: Any) -> Queue:
        self.log.append(("made", len(self.log)))
        return self.Queue(self, f"queue {len(self.log)}")

    @contextmanager
    def stream(self, queue: Queue) -> Iterator[None]:
        self.log.append((queue.name, "enters"))
        yield
        self.log.append((queue.name, "leaves"))

    def current_stream(self, device: Any) -> Queue:
        return self.computing


def test_copies_go_through_a_queue_that_waits_for_the_computing_and_is_waited_for(monkeypatch):
    backend = Backend()
    monkeypatch.setattr(torch, "get_device_module", lambda device: backend)
    monkeypatch.setattr(Tensor, "record_stream", lambda slot, queue: backend.log.append(("kept", queue.name)))
    queues = QueuedTransfers(torch.device("cpu"))
    target, source = torch.zeros(3), torch.ones(3)
    queues.keep(target)
    used = queues.mark()
    arrived = queues.start(target, source, after=used)
    queues.wait(arrived)
    assert torch.equal(target, source)
    assert backend.log[2:] == [
        ("kept", "queue 2"),
        ("queue 1", "records"),  # the queue that computes
        ("queue 2", "waits for", used),
        ("queue 2", "enters"),
        ("queue 2", "leaves"),
        ("queue 2", "records"),
        ("queue 1", "waits for", arrived),
    ]
    assert queues.lock_pages(source) is None


def test_a_model_runs_through_queues(monkeypatch):
    model, backend = tiny_model("HSH"), Backend()
    expected = outcome(model)
    monkeypatch.setattr(torch, "get_device_module", lambda device: backend)
    monkeypatch.setattr(Tensor, "record_stream", lambda slot, queue: None)
    model.layers.offload("cpu", QueuedTransfers(torch.device("cpu")))
    assert same(outcome(model), expected)


# What stays as it was, and what is refused.


def test_weights_stay_readable_and_saved_files_are_the_same(tmp_path):
    model = tiny_model("SH")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    model.layers.offload("cpu")
    outcome(model)
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(one is parameters[name] for name, one in model.named_parameters())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    model.save_pretrained(tmp_path)
    loaded = CausalWanTransformer3DModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], before[name]) for name in before)


def test_a_pass_that_breaks_off_leaves_the_next_one_right():
    model = tiny_model("HSHH")
    expected = outcome(model)
    model.layers.offload("cpu", Recorded(late=True))

    def broken_off(at: int) -> None:
        with torch.no_grad(), model.layers.in_turn() as layers:
            for number, _ in enumerate(layers):
                if number == at:
                    raise KeyError

    for at in range(4):
        with pytest.raises(KeyError):
            broken_off(at)
        assert same(outcome(model, blocks=1)[:1], expected[:1])


def test_a_copy_that_fails_is_made_again():
    class Failing(Recorded):
        fails = False

        def start(self, target: Tensor, source: Tensor, *, after: Mark) -> Mark:
            if self.fails:
                raise RuntimeError("no")
            return super().start(target, source, after=after)

    model, queue = tiny_model("HSHH"), Failing()
    expected = outcome(model)
    model.layers.offload("cpu", queue)
    outcome(model)
    queue.fails = True
    with pytest.raises(RuntimeError, match="no"):
        outcome(model)
    queue.fails = False
    assert same(outcome(model), expected)


def test_weights_that_are_written_reach_the_device():
    model = tiny_model("HSHS")
    model.layers.offload("cpu")
    outcome(model)
    changed = {name: tensor * 1.5 for name, tensor in model.state_dict().items()}
    model.load_state_dict(changed)
    twin = tiny_model("HSHS")
    twin.load_state_dict(changed)
    assert same(outcome(model), outcome(twin))


def test_weights_that_are_replaced_are_refused():
    model = tiny_model("HS")
    model.layers.offload("cpu")
    cast_model(model, torch.float64)
    with pytest.raises(ConfigError, match="replaced after the layers were offloaded"):
        outcome(model)


def test_gradients_are_refused():
    model = tiny_model("SH")
    model.layers.offload("cpu")
    with pytest.raises(ConfigError, match="without gradients"):
        model(randn(1, 3, 2, 4, 6), torch.zeros(1, 2), randn(1, 5, 10), run=DiffusionForcing())


def test_an_offloaded_model_stays_where_it_is():
    model = tiny_model("SH")
    model.layers.offload("cpu")
    model.to("cpu")
    outcome(model)
    with pytest.raises(ConfigError, match=r"cannot be moved or cast; load the model again\.$"):
        model.to(torch.float64)
    with pytest.raises(ConfigError, match="cannot be copied"):
        copy.deepcopy(model)
    with pytest.raises(ConfigError, match="already"):
        model.layers.offload("cpu")
    with pytest.raises(ConfigError, match=r"offloaded from cuda or xpu; mps shares"):
        tiny_model("S").layers.offload("mps")


def test_a_refused_cast_changes_nothing_and_settings_reach_the_layers_on_the_device(monkeypatch):
    model = tiny_model("HS", window=6)
    offload_transformer(model, "cpu")
    before = outcome(model)
    for cast in (model.half, model.double):
        with pytest.raises(ConfigError, match="cannot be moved or cast"):
            cast()
    assert same(outcome(model), before)
    asked: list[str] = []
    real = projections.softmax_attention

    def noted(*, backend: str, **given: Tensor) -> Tensor:
        asked.append(backend)
        return real(backend=backend, **given)

    monkeypatch.setattr(projections, "softmax_attention", noted)
    model.set_attention_backend("float32")
    outcome(model)
    assert set(asked) == {"float32"}


def test_pages_are_unlocked_before_their_memory_is_given_back():
    class Locking(Recorded):
        def __init__(self) -> None:
            super().__init__()
            self.now: list[int] = []

        def lock_pages(self, host: Tensor) -> Any:
            address = host.data_ptr()
            self.now.append(address)
            return lambda: self.now.remove(address)

    model, queue = tiny_model("SHH"), Locking()
    model.layers.offload("cpu", queue)
    held = model.layers[0].cross_norm.weight  # keeps its piece
    assert len(queue.now) == 3
    del model
    gc.collect()
    assert queue.now == []
    assert bool(held.isfinite().all())


# Several streams of one model.


@pytest.mark.parametrize("offloaded", [False, True])
def test_two_streams_on_two_threads_have_the_bits_of_each_alone(offloaded):
    model = tiny_model("HSH")
    if offloaded:
        model.layers.offload("cpu", Recorded(late=True))
    prompts = [randn(2, 5, 10, seed=seed) for seed in (1, 2)]

    def blocks(number: int, found: dict[int, list[Tensor]], barrier: threading.Barrier | None) -> None:
        with torch.no_grad():
            text = model.prompt_context(prompts[number])
            memory: Memory = model.allocate_memory(batch=2, height=4, width=6, window=4)
            made = []
            for block in range(6):
                if barrier is not None:
                    barrier.wait(timeout=60)
                x = randn(*LATENTS, seed=10 * number + block)
                made.append(model.predict(x, torch.full((2, 2), 700.0), text, memory))
                model.commit(x, torch.zeros(2, 2), text, memory)
        found[number] = [*made, *memory.tensors().values()]

    alone: dict[int, list[Tensor]] = {}
    for number in range(2):
        blocks(number, alone, None)
    together: dict[int, list[Tensor]] = {}
    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=blocks, args=(number, together, barrier)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert all(same(together[number], alone[number]) for number in range(2))


# Together with other ways to run passes.


def test_offloaded_layers_are_not_recorded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cuda = torch.device("cuda")
    assert type(Execution().runner(cuda, offloaded=True)) is PassRunner
    with pytest.raises(ConfigError, match=r"CUDA graphs need all weights on the device, but layers are offloaded; use"):
        Execution(cuda_graphs="on").check(cuda, offloaded=True)


def test_hooks_on_a_layer_see_its_passes():
    model, seen = tiny_model("SHH"), []
    model.layers.offload("cpu", Recorded())
    weight = model.layers[1].ffn.down.linear.weight
    model.layers[1].ffn.down.register_forward_pre_hook(lambda part, _: seen.append(part.linear.weight))
    outcome(model, blocks=1)
    assert len(seen) == 2  # the last layer alone stops at its memory
    assert all(one.data_ptr() != weight.data_ptr() for one in seen)


def test_what_was_recorded_before_is_dropped():
    model = tiny_model("SH")
    before = model.runner
    offload_transformer(model, "cpu")
    assert model.runner is not before
