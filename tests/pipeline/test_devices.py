"""``--device auto`` and the precision that goes with a device."""

import logging

import pytest
import torch

from arl2.errors import ConfigError
from arl2.model.presets import preset_config
from arl2.pipeline import devices
from arl2.pipeline.devices import automatic_dtype, best_device, checked_device, large_model_dtype
from arl2.pipeline.options import ModelSource
from arl2.pipeline.source import open_pipeline
from arl2.training.engine import start
from support import tiny_config

LARGE = preset_config("wan2.1-t2v-1.3b")


@pytest.mark.parametrize(
    ("there", "best"),
    [((), "cpu"), (("mps",), "mps"), (("xpu", "mps"), "xpu"), (("cuda", "xpu", "mps"), "cuda")],
)
def test_auto_is_the_best_device_of_the_machine(there, best, monkeypatch):
    for name, module in (("cuda", torch.cuda), ("xpu", torch.xpu), ("mps", torch.backends.mps)):
        monkeypatch.setattr(module, "is_available", lambda name=name: name in there)
    assert best_device() == checked_device("auto") == best


@pytest.mark.skipif(torch.backends.mps.is_available() or torch.xpu.is_available(), reason="the devices are there")
@pytest.mark.parametrize("name", ["mps", "xpu", "automatic"])
def test_a_device_that_is_not_there_is_one_sentence(name):
    with pytest.raises(ConfigError, match=rf"^Device '{name}' cannot be used here; this machine has cpu[^\n]*\.$"):
        checked_device(name)


def test_large_models_are_bfloat16_on_a_gpu_that_has_it(monkeypatch):
    has_bfloat16 = True
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert automatic_dtype("cuda:1", LARGE) == torch.bfloat16
    assert automatic_dtype("cuda", tiny_config()) == torch.float32
    has_bfloat16 = False
    assert automatic_dtype("cuda", LARGE) == large_model_dtype("cuda") == torch.float16
    for name in ("cpu", "mps"):
        assert automatic_dtype(name, LARGE) == torch.float32


def test_a_model_is_opened_on_the_best_device_and_says_so(caplog):
    if best_device() != "cpu":
        pytest.skip("another device is the best one here")
    assert ModelSource().device == "auto"
    for device in ("auto", None, "cpu"):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="arl2"):
            pipe = open_pipeline(ModelSource(model="shapes", device=device))
        assert (pipe.device.type, pipe.transformer.compute_dtype) == ("cpu", torch.float32)
        assert "computing on cpu in float32" in caplog.messages


def test_training_takes_auto_too(monkeypatch):
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(start, "best_device", lambda: "mps")
    assert start._device("auto", 0) == torch.device("mps")
    assert start._device(None, 0) == torch.device("cpu")
