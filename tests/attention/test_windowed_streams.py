"""Streams of windowed hybrid layers: snapshots, rewinds, prompt changes, sampling from the command line."""

import copy

import pytest
import torch
from tests.pipeline.stand_in import stand_in_pipeline

from arl2.checkpoints.conversion import convert
from arl2.checkpoints.export import export_checkpoint
from arl2.checkpoints.load import load_transformer
from arl2.cli.main import main
from arl2.errors import CheckpointError, MemoryMismatchError
from arl2.model.graphed import GraphedRunner
from arl2.model.runner import PassRunner
from arl2.pipeline.assemble import untrained_layers
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.streams.prompt_change import PromptChange, apply_change
from arl2.streams.recent import Prompts
from model.reruns import Reruns
from rollout.streams import OTHER, PROMPT, SMALL, latents_of, take
from support import randn, relative, tiny_model


def pipeline(plan: str, form: dict | None = None, **changes) -> ARL2Pipeline:
    pipe = stand_in_pipeline("S" * len(plan), SMALL)
    transformer = tiny_model(plan, block_frames=3, window=6, text_len=pipe.text.length, state_form=form, **changes)
    with torch.no_grad():
        transformer.head.proj.weight.mul_(0.3)
    return ARL2Pipeline(transformer, pipe.codec, pipe.text, SMALL)


@pytest.mark.parametrize(("plan", "form"), [("WS", None), ("VK", {"over": "evicted"}), ("WH", {"sees": "block"})])
def test_a_stream_is_saved_resumed_forked_rewound_and_given_another_prompt(plan, form, tmp_path):
    pipe = pipeline(plan, form)
    expected = take(pipe.stream(PROMPT, seed=3, window=6), 6)
    stream = pipe.stream(PROMPT, seed=3, window=6, rewind_kind="exact")
    take(stream, 4)
    stream.save(tmp_path / "exact")
    stream.save(tmp_path / "light", kind="light")
    fork = stream.fork()
    for name, same in (("resumed", pipe.resume(tmp_path / "exact")), ("itself", stream), ("forked", fork)):
        assert torch.equal(latents_of(take(same, 2)), latents_of(expected[4:])), name
    stream.rewind(2)
    assert torch.equal(latents_of(take(stream, 2)), latents_of(expected[4:]))
    light = latents_of(take(pipe.resume(tmp_path / "light"), 2))
    if form == {"sees": "block"}:
        assert torch.equal(light, latents_of(expected[4:]))  # there is no window to fill again
    else:
        # A window that is filled again knows less of what was before it.
        assert 0 < relative(light, latents_of(expected[4:])) < 0.5
    stream.change_prompt(OTHER, "refresh")
    assert bool(latents_of(take(stream, 2)).isfinite().all())


@pytest.mark.parametrize(("blocks", "sink", "window"), [(1, 0, 12), (2, 0, 9), (6, 0, 9), (7, 0, 10), (6, 3, 12)])
def test_a_refresh_tells_a_state_over_evicted_blocks_nothing_that_the_window_shows(blocks, sink, window):
    """The state that is read only fades: the latents that are committed again are its own, or the window's."""
    pipe = pipeline("WS", {"over": "evicted"}, sink=sink)
    stream = pipe.stream(PROMPT, seed=3, window=window)
    take(stream, blocks)
    before = stream.fork()._state.rollout.memories[0].layers[0]
    state = stream._state
    new = Prompts(OTHER, (pipe.text.encode([OTHER]),))
    apply_change(state.rollout, PromptChange(new, "refresh"), state.recent, decay=0.5)
    after = state.rollout.memories[0].layers[0]
    assert after.frames == before.frames
    assert torch.equal(after.read(), 0.5 * before.read())
    assert bool(after.read().any()) is (blocks > 3)
    # The newer ones know of the window's blocks, under the new prompt, in the order in which it will lose them.
    assert not torch.equal(after.newest(), 0.5 * before.newest())
    for i in range(min(blocks, after.states_lag)):
        assert not torch.equal(after.states[:, -1 - i], after.states[:, -2 - i])


def test_a_refresh_under_the_same_prompt_keeps_what_a_state_over_evicted_blocks_will_know():
    pipe = pipeline("WS", {"over": "evicted"})
    stream = pipe.stream(PROMPT, seed=3, window=12)
    take(stream, 7)
    state = stream._state
    before = state.rollout.memories[0].layers[0].states.clone()
    apply_change(state.rollout, PromptChange(state.prompts, "refresh"), state.recent, decay=1.0)
    # Only the oldest keys of the window changed: they know less of what came before them.
    assert relative(state.rollout.memories[0].layers[0].states, before) < 0.1


def test_another_forms_snapshot_is_refused(tmp_path):
    stream = pipeline("W").stream(PROMPT, seed=3, window=6)
    take(stream, 1)
    stream.save(tmp_path / "saved")
    with pytest.raises(Exception, match="rotation none") as refused:
        pipeline("W", {"rotation": "none"}).resume(tmp_path / "saved")
    assert type(refused.value).__module__ == "arl2.errors"


@pytest.mark.filterwarnings("error")
def test_an_untrained_layer_that_is_the_softmax_layer_is_no_reason_to_warn():
    softmax = tiny_model("SS", window=6)
    assert untrained_layers(convert(softmax, "WS").model) == []
    assert untrained_layers(convert(softmax, "WH", state_form={"sees": "block"}).model) == [0, 1]


def test_saved_facts_of_another_kind_are_refused():
    ours, others = (tiny_model(plan, window=6).allocate_memory(batch=1, height=4, width=6) for plan in ("W", "S"))
    block = tiny_model("W", window=6, state_form={"sees": "block"}).allocate_memory(batch=1, height=4, width=6)
    for facts in (others.layers[0].facts(), None, {"kind": "window and states", "slots": 3}):
        with pytest.raises(MemoryMismatchError):
            ours.layers[0].expected(facts, 0)
    with pytest.raises(MemoryMismatchError, match="This layer keeps window and states, but it was saved as"):
        ours.layers[0].expected(block.layers[0].facts(), 0)


@torch.no_grad()
def test_passes_are_recorded_once_and_replayed():
    """A stand-in for CUDA graphs: a recorded pass meets every tensor where it was, from the full window on."""
    model = tiny_model("WVS", window=6, state_form={"over": "evicted"})
    plain, reruns, text = copy.deepcopy(model), Reruns(), randn(1, 5, 10)
    model.runner = GraphedRunner(PassRunner(), reruns)
    both = [(one, one.allocate_memory(batch=1, height=4, width=6)) for one in (model, plain)]
    for i in range(8):
        given = randn(1, 3, 2, 4, 6, seed=i), torch.full((1, 2), 300.0), text
        flows = [one.predict(*given, memory) for one, memory in both]
        assert torch.equal(*flows)
        for one, memory in both:
            one.commit(*given, memory)
        assert both[0][1].fingerprint() == both[1][1].fingerprint()
    assert (reruns.recorded, reruns.replayed >= 8) == (2, True)


@pytest.mark.filterwarnings("ignore:There are modules")
def test_a_model_of_it_is_saved_loaded_inspected_and_sampled(tmp_path, monkeypatch, capsys):
    form = {"over": "evicted", "mixing": "interpolated"}
    pipe = pipeline("WG", form, state_rank=2, ffn_rank=2)
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = load_transformer(tmp_path / "pipe")
    assert loaded.config.state_form == form
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, pipe.transformer.state_dict()[name])
    with pytest.raises(CheckpointError, match="no names for windowed hybrid layers"):
        export_checkpoint(pipe.transformer, tmp_path / "model.pt")
    assert main(["inspect", str(tmp_path / "pipe")]) == 0
    assert "1 of 2 windowed hybrid" in " ".join(capsys.readouterr().out.split())
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--model", "pipe", "--frames", "21", "-o", "x.mp4", PROMPT]) == 0
    assert (tmp_path / "x.mp4").stat().st_size > 0
