"""Triton kernels without a GPU: equal to their twins in the interpreter, and machine code that is as it should be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu.ahead_of_time import SHARED_LIMIT, TARGETS, compiled
from gpu.fake_cuda import needs_triton

pytestmark = needs_triton
SIZES = {"CHUNK": 64, "KEY": 128, "PRECISION": "tf32"}
HEADS = {"ROWS": 16, "COLUMNS": 128}
# Of Wan 2.1 1.3B in bfloat16: pointers that are float32 whatever the model computes in, constants, warps.
STATE = {
    "solve_chunks": ({**SIZES, "VALUE": 128}, 8),
    "walk_chunks": ({**SIZES, "COLUMNS": 32}, 8),
}
ROWS = {
    "norm_rows": {**HEADS, "TURN": True},
    "unit_rows": HEADS,
    "modulate_rows": {"COLUMNS": 2048, "ONE_MORE": True},
    "gate_rows": {"COLUMNS": 2048},
    "read_rows": HEADS,
}
IN_FLOAT32 = {"g", "beta", "start", "state", "weight", "cos", "sin", "shift", "scale"}
WHOLE = {
    *("tokens", "heads", "head", "key", "value", "chunks", "width", "frame_tokens", "eps"),
    *(
        f"{x}_{y}"
        for x in ("v", "x", "intra", "inter", "shift", "scale", "gate")
        for y in ("batch", "token", "head", "frame")
    ),
}


def pointers_of(kernel) -> dict[str, str]:
    names = [name for name in kernel.arg_names if not name.isupper() and name not in WHOLE]
    return {name: "*fp32" if name in IN_FLOAT32 else "*bf16" for name in names}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", STATE)
def test_the_state_update_runs_on_tensor_cores_and_in_registers(name, target):
    from arl2.kernels.delta_rule import triton_state

    kernel, (constants, warps) = getattr(triton_state, name), STATE[name]
    code = compiled(kernel, pointers=pointers_of(kernel), constants=constants, warps=warps, target=target)
    assert code.spilled == 0
    assert code.uses_tensor_cores
    assert code.reads_16_bytes
    assert code.shared <= SHARED_LIMIT[target]


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_between_products_read_wide_and_stay_in_registers(target):
    from arl2.kernels import fused_triton

    for name, constants in ROWS.items():
        kernel = getattr(fused_triton, name)
        code = compiled(kernel, pointers=pointers_of(kernel), constants=constants, warps=4, target=target)
        assert code.spilled == 0, name
        assert code.reads_16_bytes, (name, code.instructions)


def test_every_kernel_equals_its_twin_in_the_interpreter():
    script = Path(__file__).with_name("interpreted.py")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 0, done.stderr
    # A canary: when bfloat16 is right there, the kernels are to be tested in it as well.
    assert done.stdout.splitlines() == ["bfloat16 in the interpreter: wrong", "all kernels equal their twins"]
