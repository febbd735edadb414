"""Fake CUDA tensors on a machine without a GPU: shapes, dtypes and devices as there, no memory and no numbers."""

import ctypes
import functools
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

needs_fake_cuda = pytest.mark.skipif(
    shutil.which("g++") is None or torch.cuda.is_available(),
    reason="fake CUDA tensors need g++, and a torch without CUDA",
)

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (it has no wheel for this platform)"
)


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Within the ``with``, tensors are fake; those made on ``"cuda"`` behave as if they were there."""
    allow_device("CUDA")
    with FakeTensorMode():
        yield


@functools.cache
def allow_device(kind: str) -> None:
    """Compile and load the guard of a kind of device, once a process."""
    torch_folder = Path(torch.__file__).parent
    library = Path(tempfile.mkdtemp(prefix="arl2-guard-")) / "guard.so"
    try:
        subprocess.run(
            [
                *("g++", "-std=c++20", "-O0", "-shared", "-fPIC", str(Path(__file__).with_name("guard.cpp"))),
                *(
                    f"-DDEVICE={kind}",
                    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
                    "-o",
                    str(library),
                ),
                *(f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}", "-lc10"),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        ctypes.CDLL(str(library))
    finally:
        shutil.rmtree(library.parent)
