"""A kind of attention that is written here alone goes wherever the ones that ship go; no file of src knows of it.

Letter M: a block attends to itself and to one more token, the mean of all earlier keys and values.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tests.training.conversion import align_config, distill_config, loop, task_of
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import arl2
from arl2.attention.cost import HeadSize, MemoryBytes, PassFlops
from arl2.attention.kind import Access, AttentionSpec, Part, SelfAttention
from arl2.attention.layer_memory import ConstantMemory, LayerMemory, MemoryGeometry
from arl2.attention.plan import converted_layers, parse_plan, plan_summary, register, unregister, with_converted
from arl2.attention.projections import Projections
from arl2.attention.sequence_parallel import SequenceParallel
from arl2.checkpoints.conversion import convert
from arl2.checkpoints.describe import describe
from arl2.checkpoints.export import export_checkpoint
from arl2.checkpoints.load import load_transformer
from arl2.cli.main import main
from arl2.errors import CheckpointError, ConfigError
from arl2.files.records import record_to_mapping
from arl2.kernels.rope import Rotation, turn_frames
from arl2.model.cost import clip_flops, memory_bytes, pass_bytes, pass_flops, rollout_flops, transformer_size
from arl2.model.parallelism import require_splits
from arl2.model.passes import DiffusionForcing, TeacherForcing
from arl2.model.precision import cast_model
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.budget import GenerationJob, plan_memory
from arl2.pipeline.footprint import TINY_DECODER
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.training.conversion.dry_run import dry_run
from arl2.training.conversion.report import report_conversion
from arl2.training.conversion.students import load_teacher
from arl2.training.conversion.trainable import parameter_table, part_of, unfreeze
from arl2.training.engine.loop import train
from rollout.streams import PROMPT, SMALL, latents_of, same_bits, take
from support import randn, relative, tiny_config, tiny_model

# The kind: a memory, a module, a spec. Registering it is the one line.


class MeanMemory(ConstantMemory):
    """Sums of all past keys and values, and how many there were."""

    def __init__(self, geometry: MemoryGeometry, size: HeadSize, device: torch.device | str) -> None:
        shapes = {"keys": (1, *size), "values": (1, *size), "count": (1, 1, 1)}
        super().__init__(
            geometry, {name: torch.zeros(geometry.batch, *shape, device=device) for name, shape in shapes.items()}
        )

    def write(self, sums: Mapping[str, Tensor]) -> None:
        for name, more in sums.items():
            self.tensors[name].add_(more.detach())

    def turned(self, name: str, tensor: Tensor, frames: int) -> Tensor:
        return turn_frames(tensor, [frames]) if name == "keys" else tensor


class MeanAttention(SelfAttention):
    def __init__(self, size: HeadSize, eps: float, spec: "MeanSpec") -> None:
        super().__init__()
        self.spec, self.size, self.shared = spec, size, Projections(size.width, size.heads, eps)
        self.key_map = nn.Parameter(torch.empty(size.heads, size.head_dim, size.head_dim))
        self.value_map = nn.Parameter(torch.empty(size.heads, size.head_dim, size.head_dim))
        self.past_bias = nn.Parameter(torch.empty(size.heads))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        with torch.no_grad():
            for one in (self.key_map, self.value_map):
                one.copy_(torch.eye(self.size.head_dim).expand_as(one))
            self.past_bias.uniform_(0, 1, generator=generator)

    def stream(self, x: Tensor, rotation: Rotation, memory: LayerMemory, access: Access) -> Tensor:
        assert isinstance(memory, MeanMemory)
        q, k, v = self.shared.attention_inputs(self.shared.project(x))
        out = self._attend(rotation(q), rotation(k), v, memory.tensors)
        if access is Access.COMMIT:
            self._write(k, v, rotation, memory)
        return self.shared.merge(out)

    def commit(self, x: Tensor, rotation: Rotation, memory: LayerMemory) -> None:
        assert isinstance(memory, MeanMemory)
        k = self.shared.split(self.shared.norm_k(self.shared.to_k(x)))
        self._write(k, self.shared.split(self.shared.to_v(x)), rotation, memory)

    def forward(self, x: Tensor, rotation: Rotation, layout: Any) -> Tensor:
        q, k, v = self.shared.attention_inputs(self.shared.project(x))
        turned_q, turned_k = rotation(q), rotation(k)
        past = MeanMemory(MemoryGeometry(len(x), 1, 1, 1), self.size, x.device).tensors
        reads: list[list[Tensor]] = [[] for _ in layout.copies()]
        for block in layout.blocks:
            for copy, offset in enumerate(layout.copies()):
                own = slice(*layout.span(block, offset))
                reads[copy].append(self._attend(turned_q[:, own], turned_k[:, own], v[:, own], past))
            if block is not layout.blocks[-1]:
                own = slice(*layout.span(block))
                part = Rotation(torch.zeros(1, 1))
                part.cos, part.sin = rotation.cos[own], rotation.sin[own]
                past = {name: past[name] + more for name, more in self._sums(k[:, own], v[:, own], part).items()}
        return self.shared.merge(torch.cat([part for copy in reads for part in copy], dim=1))

    def allocate_memory(self, geometry: MemoryGeometry, *, device: torch.device | str, **_: Any) -> MeanMemory:
        return MeanMemory(geometry, self.size, device)

    def _sums(self, k: Tensor, v: Tensor, rotation: Rotation) -> dict[str, Tensor]:
        keys = rotation(torch.einsum("hoi,bthi->btho", self.key_map.to(k.dtype), k))
        values = torch.einsum("hoi,bthi->btho", self.value_map.to(v.dtype), v)
        sums = {name: x.float().sum(1, keepdim=True) for name, x in (("keys", keys), ("values", values))}
        return {**sums, "count": torch.full((len(k), 1, 1, 1), float(k.shape[1]), device=k.device)}

    def _write(self, k: Tensor, v: Tensor, rotation: Rotation, memory: MeanMemory) -> None:
        memory.write(self._sums(k, v, rotation))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, past: Mapping[str, Tensor]) -> Tensor:
        count = past["count"]
        k, v = (
            torch.cat([(past[name] / count.clamp_min(1)).to(own.dtype), own], dim=1)
            for name, own in (("keys", k), ("values", v))
        )
        seen = torch.where(count > 0, self.past_bias[:, None, None].float(), float("-inf"))
        mask = F.pad(seen, (0, k.shape[1] - 1)).to(q.dtype)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


@dataclass(frozen=True)
class MeanSpec(AttentionSpec):
    letter: ClassVar[str] = "M"
    name: ClassVar[str] = "mean-pooled"
    float32: ClassVar = ("past_bias",)
    parts: ClassVar = (
        Part("key_map", 1, ("key_map",)),
        Part("past_bias", 1, ("past_bias",), decays=False),
        Part("value_map", 2, ("value_map",)),
    )

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "MeanSpec":
        return cls()

    def build(self, size: HeadSize, eps: float) -> MeanAttention:
        return MeanAttention(size, eps, self)

    def memory_bytes(self, size: HeadSize, *, batch: int, frame_tokens: int, element_size: int) -> MemoryBytes:
        return MemoryBytes(states=batch * (2 * size.width + 1) * 4)

    def read_flops(self, size: HeadSize, block: MemoryGeometry, past_frames: int) -> PassFlops:
        tokens, seen = block.block_tokens, block.block_frames * block.frame_tokens + 1
        return PassFlops(linear=8 * tokens * size.width**2, self_attention=4 * tokens * seen * size.width)

    def write_flops(self, size: HeadSize, block: MemoryGeometry) -> PassFlops:
        return PassFlops(linear=4 * block.block_tokens * size.width * size.head_dim)

    def write_alone_flops(self, size: HeadSize, block: MemoryGeometry) -> PassFlops:
        return self.write_flops(size, block) + PassFlops(linear=4 * block.block_tokens * size.width**2)

    def pass_bytes(self, size: HeadSize, element_size: int) -> int:
        return (6 * element_size + 4 * max(4, element_size)) * size.width

    def kept_bytes(self, size: HeadSize, ffn_dim: int, element_size: int) -> float:
        return 20 * element_size * size.width + element_size * ffn_dim

    def kept_bytes_alone(self, size: HeadSize, element_size: int) -> float:
        return 10 * element_size * size.width


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    register(MeanSpec)
    yield
    unregister(MeanSpec)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("third-kind")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The export of two steps of stage 2 upon two of stage 1, from a softmax teacher."""
    aligned = two_steps(align_config(folder, plan="MS", loop=loop(steps=2)), folder / "align")
    return two_steps(distill_config(folder, plan="MS", loop=loop(steps=2), aligned=str(aligned)), folder / "distill")


def two_steps(config: Any, folder: Path) -> Path:
    task = task_of(config)
    before = {name: x.detach().clone() for name, x in task.trained.items()}
    done = train(task, config.loop, folder, run_config=record_to_mapping(config), console=Console(quiet=True))
    assert done.step == 2
    moved = {name.rsplit(".", 1)[1] for name, x in task.trained.items() if not torch.equal(x, before[name])}
    assert moved == ({"key_map", "past_bias"} if config.stage == 1 else {"key_map", "past_bias", "value_map"})
    return done.export


def test_plans_know_it():
    assert parse_plan("MSHM", 4) == "MSHM"
    assert converted_layers("MSHM") == [0, 2, 3]
    assert with_converted("SSHS", [0, 2], kind="M") == "MSHS"
    assert plan_summary("MSHM") == "1 of 4 hybrid (25 %), 2 of 4 mean-pooled (50 %)"
    with pytest.raises(ConfigError, match=r"letter M stands for mean-pooled layers already"):
        register(MeanSpec)


@settings(deadline=None, max_examples=12)
@given(plan=st.text("MSH", min_size=1, max_size=3), first=st.sampled_from([None, 1]), teacher_forcing=st.booleans())
def test_streaming_equals_the_parallel_pass(plan, first, teacher_forcing):
    model, text = tiny_model(plan, window=4), randn(1, 5, 10)
    clean, noisy = randn(1, 3, 6 if first is None else 5, 4, 6), randn(1, 3, 6 if first is None else 5, 4, 6, seed=1)
    timestep = torch.full((1, noisy.shape[2]), 700.0)
    run = TeacherForcing(clean, first_block_frames=first) if teacher_forcing else DiffusionForcing(first)
    written, writes = (clean, torch.zeros_like(timestep)) if teacher_forcing else (noisy, timestep)
    memory, flows, start = model.allocate_memory(batch=1, height=4, width=6), [], 0
    with torch.no_grad():
        for frames in (first or 2, 2, 2):
            part = slice(start, start + frames)
            flows.append(model.predict(noisy[:, :, part], timestep[:, part], text, memory))
            model.commit(written[:, :, part], writes[:, part], text, memory)
            start += frames
        parallel = model(noisy, timestep, text, run=run)
    assert relative(torch.cat(flows, dim=2), parallel) < 1e-5


@pytest.mark.parametrize("plan", ["M", "MSM"])
@pytest.mark.parametrize("commit", [False, True])
def test_bytes_and_operations_are_what_is_allocated_and_counted(plan, commit):
    model, size = tiny_model(plan, window=6), 16
    text = model.prompt_context(randn(1, 5, 10))
    memory = model.allocate_memory(batch=1, height=size, width=size)
    assert memory.nbytes == memory_bytes(model.config, batch=1, frame_tokens=64, element_size=4).at(6)
    run, given = (model.commit if commit else model.predict), (randn(1, 3, 2, size, size), torch.zeros(1, 2), text)
    model.commit(*given, memory)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(*given, memory)
    time_path = 2 * 2 * (16 * 24 + 24 * 24 + 6 * 24 * 24)
    counted = pass_flops(model.config, memory.geometry, past_frames=2, commit=commit)
    assert counted.total == counter.get_total_flops() - time_path


def test_operations_of_a_training_pass_are_what_is_counted():
    model, latents = tiny_model("MSM"), randn(1, 3, 6, 16, 16)
    text = model.prompt_context(randn(1, 5, 10))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(latents, torch.zeros(1, 6), text, run=TeacherForcing(latents))
    time_path = 2 * 12 * (16 * 24 + 24 * 24 + 6 * 24 * 24)
    counted = clip_flops(model.config, MemoryGeometry(1, 8, 8, 2), frames=6)
    assert counted.total == counter.get_total_flops() - time_path


def test_several_ranks_are_refused_as_it_does_not_say_how_it_splits():
    layers = [layer.self_attention for layer in tiny_model("SMH").layers]
    require_splits(layers, heads=2, ranks=1)
    with pytest.raises(ConfigError, match=r"kind M \(mean-pooled\) do not say how they split over ranks; run them on"):
        require_splits(layers, heads=2, ranks=2)
    with pytest.raises(ConfigError, match="MeanMemory does not say which axis its heads are in"):
        replace(tiny_model("M").allocate_memory(batch=1, height=4, width=6), parallel=SequenceParallel(0, 2))


def test_a_softmax_model_is_converted():
    softmax, text = cast_model(tiny_model("SSS"), torch.bfloat16), randn(1, 5, 10)
    made = convert(softmax, "MSH", state_rank=2, ffn_rank=2)
    assert {name.split("attention.")[1] for name in made.new if name.startswith("layers.0")} == {
        "key_map",
        "value_map",
        "past_bias",
    }
    shared, own = "layers.0.self_attention.shared.to_q.weight", made.model.layers[0].self_attention
    assert made.model.get_parameter(shared).data_ptr() == softmax.get_parameter(shared).data_ptr()
    assert (own.past_bias.dtype, own.key_map.dtype) == (torch.float32, torch.bfloat16)
    again = convert(softmax, "MSH", state_rank=2, ffn_rank=2, seed=1).model
    assert not torch.equal(again.layers[0].self_attention.past_bias, own.past_bias)

    before, after = tiny_model("SS"), convert(tiny_model("SS"), "MS").model
    latents, timestep = randn(1, 3, 4, 4, 6), torch.full((1, 4), 500.0)
    with torch.no_grad():
        one, other = (model(latents, timestep, text, run=DiffusionForcing()) for model in (before, after))
    torch.testing.assert_close(other[:, :, :2], one[:, :, :2], atol=1e-5, rtol=1e-5)
    assert relative(other[:, :, 2:], one[:, :, 2:]) > 1e-3
    with pytest.raises(ConfigError, match=r"Layers \[0\] are mean-pooled already"):
        convert(after, "HS")


def test_the_report_and_the_tables_name_it():
    before = tiny_model("SSS")
    made = convert(before, "MSM")
    report = report_conversion(before.config, made, SMALL)
    (softmax, mean) = report.kinds
    assert (softmax.name, mean.name, mean.letter, mean.layers) == ("softmax", "mean-pooled", "M", 2)
    assert (mean.new, mean.stage_1, mean.stage_2) == (2 * 2 * 12 * 12 + 2, 2 * 12 * 12 + 2, 2 * 2 * 12 * 12 + 2)
    table = parameter_table(made.model, 2)
    assert [(row.label, row.stage, row.layers, row.weight_decay) for row in table.rows] == [
        ("key_map", 1, 2, True),
        ("past_bias", 1, 2, False),
        ("value_map", 2, 2, True),
    ]
    assert set(unfreeze(made.model, 2)) == set(made.new)


@pytest.mark.filterwarnings("ignore:There are modules")
def test_it_is_trained_and_its_pipeline_saved_loaded_inspected_and_run(trained, folder, tmp_path, monkeypatch, capsys):
    pipe = ARL2Pipeline.from_pretrained(trained)
    assert pipe.transformer.config.layer_plan == "MS"
    pipe.save_pretrained(tmp_path / "again")
    loaded = CausalWanTransformer3DModel.from_pretrained(tmp_path / "again" / "transformer", torch_dtype=torch.bfloat16)
    assert loaded.layers[0].self_attention.past_bias.dtype == torch.float32
    for name, tensor in load_transformer(tmp_path / "again").state_dict().items():
        assert torch.equal(tensor, pipe.transformer.state_dict()[name])
    with pytest.raises(CheckpointError, match="no names for mean-pooled layers"):
        export_checkpoint(pipe.transformer, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()

    found = describe(trained, height=64, width=64)
    assert (found.plan, found.kernels) == ("MS", ("softmax attention",))
    assert main(["inspect", str(trained)]) == 0
    assert "MS" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--model", str(trained), "--frames", "21", "-o", "x.mp4", PROMPT]) == 0
    assert (tmp_path / "x.mp4").stat().st_size > 0
    told = dry_run(distill_config(folder, plan="MS"))
    assert "value_map" in told
    assert "GB in float32" in told


@pytest.mark.parametrize("plan", ["M", "SM"])
def test_a_stream_of_it_is_saved_and_resumed(plan, tmp_path):
    from pipeline.stand_in import stand_in_pipeline

    pipe = stand_in_pipeline(plan, SMALL)
    expected = take(pipe.stream(PROMPT, seed=3), 6)
    for kind in ("exact", "light"):
        stream = pipe.stream(PROMPT, seed=3)
        take(stream, 4)
        stream.save(tmp_path / kind, kind=kind)
        rest = take(pipe.resume(tmp_path / kind), 2)
        if kind == "exact":
            assert all(same_bits(one, other) for one, other in zip(rest, expected[4:], strict=True))
        elif plan == "M":
            assert torch.equal(latents_of(rest), latents_of(expected[4:]))  # there is no window to fill again
        else:
            assert relative(latents_of(rest), latents_of(expected[4:])) < 0.5
    small, large = ((tmp_path / kind).stat().st_size for kind in ("light", "exact"))
    assert small < large
    pipe.save_pretrained(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="has converted layers"):
        load_teacher(tmp_path / "pipe", device="cpu")


def test_unknown_letters_are_refused_everywhere():
    config = {**tiny_model("SS").config, "layer_plan": "XS"}
    geometry = MemoryGeometry(1, 2, 3, 2)
    calls = (
        lambda: parse_plan("XS", 2),
        lambda: CausalWanTransformer3DModel(**tiny_config("XS")),
        lambda: memory_bytes(config, batch=1, frame_tokens=6, element_size=2),
        lambda: pass_flops(config, geometry, past_frames=0, commit=False),
        lambda: clip_flops(config, geometry, frames=4),
        lambda: rollout_flops(config, geometry, frames=4, passes=2),
        lambda: pass_bytes(config, tokens=12, dtype=torch.float32),
        lambda: transformer_size(config),
        lambda: plan_memory(config, GenerationJob(frames=4), text_encoder_parameters=0, decoder=TINY_DECODER),
        lambda: part_of("layers.0.self_attention.state.A_log", "XS", 1),
        lambda: convert(tiny_model("SS"), "XS"),
    )
    for call in calls:
        with pytest.raises(
            ConfigError,
            match=r"letters? '?X.*known are S \(softmax\), H \(hybrid\), W \(windowed hybrid\), .*M \(mean-pooled\)",
        ):
            call()


_KIND_OR_LETTER = re.compile(
    r"""\b\w*(Hybrid|Softmax|Delta2?)Spec\b|["'][HSWKGV]["']|\.count\(\s*(letter|\w+\.letter)\s*\)"""
)


def test_nothing_outside_its_room_names_a_kind_or_compares_a_letter():
    source = Path(arl2.__file__).parent
    # A benchmark says which kinds it compares.
    apart = ("attention/", "evaluation/bench/")
    files = [path for path in source.rglob("*.py") if not str(path.relative_to(source)).startswith(apart)]
    assert len(files) > 150
    offences = [
        f"{path.relative_to(source)}: {line.strip()}"
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if _KIND_OR_LETTER.search(line)
    ]
    assert offences == []
