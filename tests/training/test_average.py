"""``recipes/average.py``: weights between runs of one model."""

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


def test_between_several_exports(tmp_path, monkeypatch):
    folders = [export(tmp_path / f"run{n}", {"w": torch.tensor([float(value)])}) for n, value in enumerate((8, 0, 3))]
    averaged(monkeypatch, *folders, "-o", tmp_path / "mean", "--share", "0.8")
    mean = load_file(tmp_path / "mean" / "transformer" / "a.safetensors")["w"]
    assert mean.item() == pytest.approx(0.2 * 8 + 0.8 * 1.5)
    assert (tmp_path / "mean" / "generation.json").read_text() == "run2"


@pytest.mark.parametrize("share", ["-0.1", "1.1", "nan"])
def test_a_share_is_a_share(tmp_path, monkeypatch, share):
    folders = [export(tmp_path / name, {"w": torch.zeros(2)}) for name in ("first", "second")]
    with pytest.raises(SystemExit, match="give 0 to 1"):
        averaged(monkeypatch, *folders, "-o", tmp_path / "mean", f"--share={share}")


def test_folders_without_weights_are_refused(tmp_path, monkeypatch):
    first = export(tmp_path / "first", {"w": torch.zeros(2)})
    (tmp_path / "empty").mkdir()
    for folders in ((first, tmp_path / "empty"), (tmp_path / "missing", first)):
        with pytest.raises(SystemExit, match=r"holds no \.safetensors"):
            averaged(monkeypatch, *folders, "-o", tmp_path / "mean")
    more = export(tmp_path / "more", {"w": torch.zeros(2)})
    save_file({"w": torch.zeros(2)}, more / "b.safetensors")
    with pytest.raises(SystemExit, match=r"'b\.safetensors' is in one of"):
        averaged(monkeypatch, more, first, "-o", tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
