"""``recipes/average.py``: weights between two runs of one model."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).parents[2] / "recipes" / "average.py"


def export(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    (folder / "transformer").mkdir(parents=True)
    save_file(tensors, folder / "transformer" / "a.safetensors")
    (folder / "generation.json").write_text(folder.name)
    return folder


def averaged(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["average.py", *map(str, words)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_between_two_exports(tmp_path, monkeypatch):
    first = export(tmp_path / "first", {"w": torch.tensor([0.0, 1.0], dtype=torch.float16)})
    second = export(tmp_path / "second", {"w": torch.tensor([4.0, 3.0], dtype=torch.float16)})
    averaged(monkeypatch, first, second, "-o", tmp_path / "mean", "--share", "0.25")
    mean = load_file(tmp_path / "mean" / "transformer" / "a.safetensors")["w"]
    assert mean.dtype is torch.float16
    assert mean.tolist() == [1.0, 1.5]
    assert (tmp_path / "mean" / "generation.json").read_text() == "second"
    with pytest.raises(SystemExit, match="is there already"):
        averaged(monkeypatch, first, second, "-o", tmp_path / "mean")


def test_other_models_are_refused(tmp_path, monkeypatch):
    first = export(tmp_path / "first", {"w": torch.zeros(2)})
    second = export(tmp_path / "second", {"w": torch.zeros(3)})
    with pytest.raises(SystemExit, match="hold other tensors"):
        averaged(monkeypatch, first, second, "-o", tmp_path / "mean")
