"""Freed memory goes back to the system where the C library can do that."""

import sys
from pathlib import Path

import numpy as np
import pytest

from arl2.serving.live.heap import give_back


@pytest.mark.skipif(sys.platform != "linux", reason="Only glibc has the call")
def test_what_was_freed_goes_back():
    # Small blocks, which the allocator keeps; every second one stays, so that the heap cannot simply shrink.
    blocks = [np.ones(8_000, np.uint8) for _ in range(4_000)]
    del blocks[::2]
    blocks = blocks[:1]
    give_back()
    before = _resident_bytes()
    held = [np.ones(8_000, np.uint8) for _ in range(4_000)]
    last = held[-1]
    assert _resident_bytes() > before + 20e6
    del held
    give_back()
    assert _resident_bytes() < before + 10e6
    assert last[0] == blocks[0][0] == 1


def test_it_is_harmless_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "platform", "other")
    assert give_back() is False


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
