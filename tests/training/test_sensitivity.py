"""Ranking layers: each distance is that of a rollout with one layer replaced, and plans follow the ranking."""

from pathlib import Path

import pytest
import torch
from tests.training.conversion import align_config, task_of, teacher_folder

from arl2.errors import ConfigError
from arl2.rollout.generator import generate_blocks
from arl2.rollout.noise import SeededNoise
from arl2.training.conversion.bar_chart import bar_chart
from arl2.training.conversion.pictures import RolloutSpec
from arl2.training.conversion.sensitivity import Sensitivity, measure_sensitivity
from arl2.training.conversion.students import StudentSpec, load_aligned, load_teacher, make_student


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sensitivity")


def test_distances_are_those_of_rollouts_with_one_layer_replaced(folder):
    task = task_of(align_config(folder, teacher=str(teacher_folder(folder / "teacher", "SSS")), plan="HSH"))
    task.export(folder / "aligned")
    teacher = load_teacher(task.config.teacher, device="cpu")
    text = torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(0))
    told = []
    found = measure_sensitivity(
        teacher,
        str(folder / "aligned"),
        text,
        RolloutSpec(teacher.settings, 8, 8, 6, seed=4),
        batch=2,
        tell=lambda layer, moved: told.append((layer, moved)),
    )
    assert dict(told) == found.distances
    assert list(found.distances) == [0, 2]

    aligned = load_aligned(folder / "aligned", teacher).state_dict()
    for layer, moved in found.distances.items():
        alone = make_student(teacher, StudentSpec((layer,)))
        own = alone.state_dict()
        for name in own:
            own[name].copy_(aligned[name])
        rollouts = []
        for model in (alone, teacher.model):
            blocks = generate_blocks(
                model,
                text,
                noise=SeededNoise([4, 5, 6]),
                sampler=teacher.settings.sampler(),
                height=8,
                width=8,
                frames=6,
            )
            rollouts.append(torch.cat([block.latents for block in blocks], 2).flatten(1))
        norms = (rollouts[0] - rollouts[1]).norm(dim=1) / rollouts[1].norm(dim=1)
        assert moved == pytest.approx(norms.mean().item(), rel=1e-4)
        assert moved > 1e-3
    with pytest.raises(ConfigError, match="Got no prompts"):
        measure_sensitivity(teacher, str(folder / "aligned"), text[:0], RolloutSpec(teacher.settings, 8, 8, 6))


def test_plans_take_the_least_sensitive_and_leave_what_is_kept():
    found = Sensitivity({0: 0.3, 1: 0.1, 2: 0.2, 3: 0.4}, 5)
    assert found.ranking == [1, 2, 0, 3]
    assert found.plans() == {1: "SHSSS", 2: "SHHSS", 3: "HHHSS", 4: "HHHHS"}
    assert found.plans(keep=[1, 4]) == {1: "SSHSS", 2: "HSHSS", 3: "HSHHS"}
    written = found.to_mapping(keep=[1], count=2)
    assert written["ranking"] == [1, 2, 0, 3]
    assert written["suggested"] == "HSHSS"
    with pytest.raises(ConfigError, match="without those to keep, 3 were measured"):
        found.plan(4, keep=[1])
    with pytest.raises(ConfigError, match="no layer 5"):
        found.plan(1, keep=[5])


def test_a_chart_has_bars_as_high_as_their_numbers(tmp_path):
    chart = bar_chart([("0", 1.0), ("1", 0.5), ("2", 0.0)], title="Bars", marked=["1"], path=tmp_path / "bars.png")
    columns = [40 + 40 * i + 14 for i in range(3)]
    heights = [
        sum(chart.getpixel((x, y)) in ((0x94, 0xA3, 0xB8), (0xC2, 0x41, 0x0C)) for y in range(320)) for x in columns
    ]
    assert heights[0] == pytest.approx(2 * heights[1], abs=3)
    assert heights[2] <= 1
    assert chart.getpixel((columns[1], 270)) == (0xC2, 0x41, 0x0C)
    with pytest.raises(ConfigError, match="one bar or more"):
        bar_chart([], title="Bars", path=tmp_path / "bars.png")
