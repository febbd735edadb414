"""Recorded passes: whatever a stream does, the same bits as without, and every tensor where it was recorded."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import pytest
import torch

from arl2.errors import ConfigError
from arl2.kernels.backends import use_backends
from arl2.model.execution import Execution
from arl2.model.graphed import GraphedRunner, RecordingError
from arl2.model.runner import PassRunner
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.blocks import VideoBlock
from model.reruns import Reruns
from pipeline.stand_in import stand_in_pipeline
from rollout.streams import GUIDED, OTHER, PROMPT, SMALL, same_bits, take
from support import randn, tiny_model

KINDS = {
    # plan, settings, further arguments
    "hybrid and window": ("HS", SMALL, {}),
    "sinks that move": ("HS", SMALL, {"sink": 2, "sink_positions": "relative"}),
    "two memories": ("SH", GUIDED, {}),
    "all hybrid": ("HH", SMALL, {}),
}


def eventful(pipe: ARL2Pipeline, folder: Path, **asked: object) -> list[VideoBlock]:
    """20 blocks of a stream to which everything happens that can."""
    stream = pipe.stream(PROMPT, seed=3, rewind_blocks=3, **asked)
    blocks = take(stream, 5)
    stream.prompt = OTHER
    blocks += take(stream, 3)
    fork = stream.fork()
    blocks += [block for _ in range(2) for block in (next(stream), next(fork))]  # in turn
    stream.rewind(2)
    blocks += take(stream, 3)
    stream.save(folder / "stream.arl2")
    return blocks + take(pipe.resume(folder / "stream.arl2"), 3) + take(fork, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_happens_to_a_stream_the_bits_are_the_same_and_no_tensor_moves(kind, tmp_path):
    plan, settings, asked = KINDS[kind]
    pipe = stand_in_pipeline(plan, settings)
    expected = eventful(pipe, tmp_path, **asked)
    reruns = Reruns()
    pipe.transformer.runner = GraphedRunner(PassRunner(), reruns)
    got = eventful(pipe, tmp_path, **asked)
    assert len(got) == len(expected) == 20
    assert all(same_bits(one, other) for one, other in zip(got, expected, strict=True))
    assert reruns.recorded == 2  # one denoising pass and one cache-update pass, for all of it
    # Two denoising passes and a cache-update pass a block; the window is full after two blocks.
    passes = 3 * (2 if settings is GUIDED else 1)
    assert reruns.replayed >= passes * (20 if plan == "HH" else 18)


def test_another_size_batch_or_window_is_recorded_anew_and_other_weights_at_their_place():
    model = tiny_model("HS", window=6)
    plain, reruns = copy.deepcopy(model), Reruns()
    model.runner = GraphedRunner(PassRunner(), reruns)
    with torch.no_grad():
        for batch, width, window in ((1, 6, 6), (2, 6, 6), (2, 8, 6), (2, 8, 4), (1, 6, 6)):
            both = [one.allocate_memory(batch=batch, height=4, width=width, window=window) for one in (model, plain)]
            text = randn(batch, 5, 10)
            for i in range(5):
                x, timestep = randn(batch, 3, 2, 4, width, seed=i), torch.full((batch, 2), 300.0)
                flows = [one.predict(x, timestep, text, own) for one, own in zip((model, plain), both, strict=True)]
                assert torch.equal(*flows)
                for one, own in zip((model, plain), both, strict=True):
                    one.commit(x, timestep, text, own)
            assert both[0].fingerprint() == both[1].fingerprint()
    assert reruns.recorded == 10
    assert model.to("cpu").runner is not plain.runner
    assert type(model.runner) is PassRunner  # moving a model forgets what was recorded over its weights


def changes() -> dict[str, Callable]:
    return {
        "states fade": lambda memory, _: memory.scale_states(0.5),
        "another origin": lambda memory, _: memory.move_origin(2),
        "begins again": lambda memory, _: memory.begin_at(40),
        "restored": lambda memory, kept: memory.restore(*kept),
        "a pass of its own": lambda memory, _: None,
    }


@pytest.mark.parametrize("plan", ["HH", "HS"])
@pytest.mark.parametrize("change", changes())
def test_what_is_done_to_a_memory_between_passes_is_seen(plan, change):
    model = tiny_model(plan, window=6)
    plain = copy.deepcopy(model)
    model.runner = GraphedRunner(PassRunner(), Reruns())
    text, timestep = randn(1, 5, 10), torch.full((1, 2), 300.0)
    results = []
    with torch.no_grad():
        for one in (model, plain):
            memory = one.allocate_memory(batch=1, height=4, width=6)
            for i in range(8):
                x = randn(1, 3, 2, 4, 6, seed=i)
                if i == 3:
                    kept = memory.tensors(), memory.facts()
                if i == 5:
                    changes()[change](memory, kept)
                    with use_backends(attention="naive"):  # not recorded
                        one.commit(x, timestep, text, memory)
                results.append(one.predict(x, timestep, text, memory))
                one.commit(x, timestep, text, memory)
            results.append(torch.tensor(memory.frames))
    assert all(torch.equal(a, b) for a, b in zip(results[:9], results[9:], strict=True))


class BreaksOff(Reruns):
    """Stops the second replay of a cache-update pass after it has written the seat, and then no more."""

    def record(self, run):
        replay, number, count = super().record(run), self.recorded, itertools.count()

        def broken():
            replay()
            if number == 2 and next(count) == 1:
                raise KeyboardInterrupt

        return broken


def test_a_recorded_commit_that_broke_off_is_made_again_from_the_streams_memory():
    model = tiny_model("HS", window=4)
    plain = copy.deepcopy(model)
    model.runner = GraphedRunner(PassRunner(), BreaksOff())
    text, timestep, ends = randn(1, 5, 10), torch.full((1, 2), 300.0), []
    with torch.no_grad():
        for one in (model, plain):
            memory = one.allocate_memory(batch=1, height=4, width=6)
            for i in range(6):
                x = randn(1, 3, 2, 4, 6, seed=i)
                ends.append(one.predict(x, timestep, text, memory))
                try:
                    one.commit(x, timestep, text, memory)
                except KeyboardInterrupt:
                    ends[-1] = one.predict(x, timestep, text, memory)
                    one.commit(x, timestep, text, memory)
            ends.append(memory.fingerprint())
    assert ends[6] == ends[13]
    assert all(torch.equal(a, b) for a, b in zip(ends[:6], ends[7:13], strict=True))


def test_streams_of_two_shapes_by_turns_are_recorded_once_each():
    model, reruns = tiny_model("HH"), Reruns()
    model.runner = GraphedRunner(PassRunner(), reruns)
    memories = {width: model.allocate_memory(batch=1, height=4, width=width) for width in (6, 8)}
    with torch.no_grad():
        for i in range(3):
            for width, memory in memories.items():
                given = randn(1, 3, 2, 4, width, seed=i), torch.full((1, 2), 300.0), randn(1, 5, 10), memory
                model.predict(*given)
                model.commit(*given)
    assert reruns.recorded == 4


@pytest.mark.parametrize("modes", [(torch.inference_mode, torch.no_grad), (torch.no_grad, torch.inference_mode)])
def test_recorded_passes_serve_streams_of_both_modes_without_gradients(modes):
    model = tiny_model("HS", window=4)
    plain, reruns = copy.deepcopy(model), Reruns()
    model.runner = GraphedRunner(PassRunner(), reruns)
    timestep = torch.full((1, 2), 300.0)
    for mode in modes:
        flows = []
        for one in (model, plain):
            with mode():
                memory, text = one.allocate_memory(batch=1, height=4, width=6), randn(1, 5, 10)
                for i in range(4):
                    x = randn(1, 3, 2, 4, 6, seed=i)
                    flows.append(one.predict(x, timestep, text, memory).clone())
                    one.commit(x, timestep, text, memory)
        assert all(torch.equal(a, b) for a, b in zip(flows[:4], flows[4:], strict=True))
    assert reruns.recorded == 2


def test_with_gradients_nothing_is_recorded():
    model, reruns = tiny_model("H"), Reruns()
    model.runner = GraphedRunner(PassRunner(), reruns)
    memory = model.allocate_memory(batch=1, height=4, width=6)
    flow = model.predict(randn(1, 3, 2, 4, 6), torch.full((1, 2), 300.0), randn(1, 5, 10), memory)
    flow.square().mean().backward()
    assert reruns.recorded == 0
    assert model.layers[0].self_attention.shared.to_q.weight.grad is not None


class Refuses:
    def record(self, run):
        raise RecordingError("A pass could not be recorded as a CUDA graph: an operation waits for the device.")


@pytest.mark.parametrize("required", [True, False])
def test_what_cannot_be_recorded_is_refused_or_run_as_it_is(required, caplog):
    model = tiny_model("HS", window=4)
    model.runner = GraphedRunner(PassRunner(), Refuses(), is_required=required)
    memory = model.allocate_memory(batch=1, height=4, width=6)
    given = randn(1, 3, 2, 4, 6), torch.full((1, 2), 300.0), randn(1, 5, 10), memory
    with torch.no_grad():
        model.commit(*given)
        if required:
            with pytest.raises(ConfigError, match=r"waits for the device\. Run it with cuda_graphs 'off'\."):
                model.predict(*given)
            return
        model.predict(*given)
        model.commit(*given)
        model.commit(*given)
    assert memory.frames == 6
    assert [record.message.count("waits for the device") for record in caplog.records] == [1]


def test_graphs_need_cuda_and_words_are_checked(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in use, where nothing checks annotations
    model = tiny_model("H")
    model.execution = Execution(cuda_graphs="on")  # it may be moved yet
    with pytest.raises(ConfigError, match="CUDA graphs need a CUDA device, not cpu"):
        _ = model.runner
    for wrong in ({"compile": "max"}, {"cuda_graphs": "yes"}):
        with pytest.raises(ConfigError, match="give one of"):
            Execution(**wrong)
