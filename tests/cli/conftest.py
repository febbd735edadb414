"""What the tests of ``arl2 generate`` share: a tiny model in a folder, and the command with it in an empty folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from arl2.cli.main import main
from pipeline.stand_in import stand_in_folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a saved stand-in. No test writes into it."""
    return str(stand_in_folder(tmp_path_factory.mktemp("model") / "stand-in"))


@pytest.fixture
def generate(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command's exit status for these words, run in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: main(["generate", "--model", model, *words])
