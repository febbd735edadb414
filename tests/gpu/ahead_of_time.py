"""Triton kernels compiled for GPUs that are not here, and what their machine code says."""

import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGETS = (80, 90, 120)  # Ampere, Hopper, Blackwell of a workstation
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 120: 99 * 1024}  # bytes of shared memory that a block may have
_INSTRUCTION = re.compile(r"\b([A-Z][A-Z0-9]*MMA|LDG[.A-Z0-9]*|STG[.A-Z0-9]*|LDL|STL|LDGSTS[.A-Z0-9]*)")


@dataclass(frozen=True)
class MachineCode:
    """What a kernel compiled to.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread that did not fit its registers.
        shared: bytes of shared memory.
        instructions: how many of each that matters here: matrix products, loads, stores.
    """

    registers: int
    spilled: int
    shared: int
    instructions: Counter[str]

    @property
    def uses_tensor_cores(self) -> bool:
        """Whether there are matrix instructions."""
        return any(name.endswith("MMA") for name in self.instructions)

    @property
    def reads_16_bytes(self) -> bool:
        """Whether global memory is read 16 bytes at a time."""
        return any("128" in name for name in self.instructions if name.startswith("LDG"))


def compiled(
    kernel: Any, *, pointers: dict[str, str], constants: dict[str, Any], warps: int, target: int
) -> MachineCode:
    """Compile for ``sm_<target>``; arguments that are neither pointers nor constants are whole numbers.

    Pointers and whole numbers count as divisible by 16, as the launcher finds them for real sizes.
    """
    import triton
    import triton.backends.nvidia as nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tools = Path(nvidia.__file__).parent / "bin"
    floats = {"eps"}
    signature = {
        name: pointers.get(name) or ("constexpr" if name in constants else "fp32" if name in floats else "i32")
        for name in kernel.arg_names
    }
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or signature[name] == "i32"
    }
    code = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible),
        target=GPUTarget("cuda", target, 32),
        options={"num_warps": warps, "enable_fp_fusion": True},  # as by default; said, so that Triton 3.9 does not warn
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(code.asm["cubin"])
        usage = _run(tools / "cuobjdump", "--dump-resource-usage", file)
        listing = _run(tools / "nvdisasm", file)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    instructions = Counter(_INSTRUCTION.findall(listing))
    spilled = int(found[2]) + instructions["LDL"] + instructions["STL"]
    return MachineCode(int(found[1]), spilled, code.metadata.shared, instructions)


def _run(tool: Path, *arguments: object) -> str:
    done = subprocess.run(
        [tool, *map(str, arguments)], check=True, capture_output=True, text=True, env={**os.environ, "LANG": "C"}
    )
    return done.stdout
