"""The log that TensorBoard opens."""

import sys

import pytest
from rich.console import Console

from arl2.errors import ConfigError
from arl2.training.engine.progress import Progress, Reporter


def test_a_log_holds_what_was_shown(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Reporter(tmp_path, console=Console(quiet=True), from_step=0, tensorboard=True) as reporter:
        for step in (1, 2):
            reporter.show(Progress(step, 0.1, 1e-3, 2.0, None, {"loss": 1.0 / step}, {}))
    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    assert [(event.step, event.value) for event in log.Scalars("loss")] == [(1, 1.0), (2, 0.5)]


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'arl2\[train\]'"):
        Reporter(tmp_path, console=Console(quiet=True), from_step=0, tensorboard=True)
