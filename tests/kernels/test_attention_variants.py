"""The kernels of full attention by their names: requested, refused, or the fastest one as measured."""

from typing import get_args

import pytest
import torch

from arl2.cli.main import main
from arl2.errors import ConfigError
from arl2.kernels.attention import BACKENDS, softmax_attention
from arl2.kernels.attention.variants import CUDA_KERNELS, fastest
from arl2.kernels.backends import settle_choices
from arl2.kernels.timings import Timings, use_timings
from arl2.pipeline.options import AttentionBackend, ModelSource
from arl2.pipeline.source import open_pipeline
from support import randn, tiny_model

HALF = torch.bfloat16


class Counting:
    """A clock that counts how often it was read."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return float(self.reads)


def q_and_keys(keys: int, dtype: torch.dtype = HALF) -> tuple[torch.Tensor, torch.Tensor]:
    return randn(1, 3, 2, 8).to(dtype), randn(1, keys, 2, 8, seed=1).to(dtype)


@torch.no_grad()
def test_a_growing_cache_is_timed_again_when_it_has_doubled():
    clock = Counting()
    with use_timings(Timings(None, clock)):
        reads = []
        for keys in (5, 6, 8, 9, 16, 17):
            q, k = q_and_keys(keys)
            fastest(q, k, k)
            reads.append(clock.reads)
    assert reads == [12, 12, 12, 24, 24, 36]  # two candidates, three runs, before and after


def test_nothing_is_timed_where_there_is_no_choice_or_gradients_are_recorded():
    clock = Counting()
    with use_timings(Timings(None, clock)):
        q, k = q_and_keys(5)
        assert fastest(q, k, k) == "sdpa"
        with torch.no_grad():
            q, k = q_and_keys(5, torch.float32)
            assert fastest(q, k, k) == "sdpa"
            q, k = q_and_keys(0)
            assert fastest(q, k, k) == "sdpa"
    assert clock.reads == 0


@torch.no_grad()
def test_a_graph_takes_what_was_found_before():
    q, k = q_and_keys(5)

    def which(q, k):
        return q + (1 if fastest(q, k, k) == "float32" else 2)

    class FavoursFloat32(Counting):
        def __call__(self) -> float:
            super().__call__()
            # Six reads for the first candidate, a second for each of its runs; then no time passes.
            return float(min(self.reads, 7))

    settle_choices()
    clock = FavoursFloat32()
    with use_timings(Timings(None, clock)):
        torch.compiler.reset()
        before = torch.compile(which, backend="eager", fullgraph=True)(q, k)
        assert clock.reads == 0
        assert torch.equal(before, q + 2)
        assert fastest(q, k, k) == "float32"
        torch.compiler.reset()
        after = torch.compile(which, backend="eager", fullgraph=True)(q, k)
    torch.compiler.reset()
    assert torch.equal(after, q + 1)


@pytest.mark.parametrize("name", CUDA_KERNELS)
def test_a_kernel_of_another_device_is_refused(name):
    q, k = q_and_keys(5)
    sentence = rf"Backend '{name}' of softmax attention runs on CUDA devices, not on cpu; use 'auto' or 'sdpa'\."
    with pytest.raises(ConfigError, match=sentence):
        softmax_attention(q=q, k=k, v=k, backend=name)
    with pytest.raises(ConfigError, match=sentence):
        tiny_model("S").set_attention_backend(name)
    with pytest.raises(ConfigError, match=sentence):  # before anything is loaded
        open_pipeline(ModelSource(model="shapes-75", device="cpu", attention_backend=name))


def test_an_unknown_kernel_is_refused(capsys):
    with pytest.raises(ConfigError, match="'_native_cudnn' of softmax attention is not known; choose one of auto, "):
        tiny_model("S").set_attention_backend("_native_cudnn")
    assert main(["generate", "a red circle", "--attention-backend", "flahs"]) == 2
    assert "'flash'" in capsys.readouterr().err
    assert set(get_args(AttentionBackend)) <= set(BACKENDS)


def test_the_command_line_refuses_in_one_sentence(capsys):
    words = ["generate", "a red circle", "--device", "cpu", "--attention-backend", "cudnn", "-o", "never.gif"]
    assert main(words) == 2
    assert capsys.readouterr().err.strip() == (
        "arl2 generate: Backend 'cudnn' of softmax attention runs on CUDA devices, not on cpu; use 'auto' or 'sdpa'."
    )


@torch.no_grad()
def test_a_model_computes_by_the_kernel_that_was_asked_for(monkeypatch):
    seen = []

    def attend(q, k, v, scale, variant):
        seen.append(variant)
        return q

    monkeypatch.setattr("arl2.kernels.attention.sdpa.attend", attend)
    model = tiny_model("HS")
    memory = model.allocate_memory(batch=1, height=16, width=16)
    latents, timestep = randn(1, 3, 2, 16, 16), torch.zeros(1, 2)
    prompt = model.prompt_context(randn(1, 5, 10))
    model.set_attention_backend("float32")
    model.predict(latents, timestep, prompt, memory)
    assert set(seen) == {"float32"}
    model.reset_attention_backend()
    seen.clear()
    model.predict(latents, timestep, prompt, memory)
    assert set(seen) == {"sdpa"}
