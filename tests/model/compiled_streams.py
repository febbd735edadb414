"""Compiled passes beside plain ones, in a process of its own: checks of annotations cannot be compiled.

Prints one JSON object.
"""

import contextlib
import copy
import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch._dynamo.utils import counters

from arl2.attention import folded
from arl2.cli.main import main as command
from arl2.kernels.backends import use_backends
from arl2.model.execution import Execution
from arl2.model.transformer import CausalWanTransformer3DModel
from support import randn, tiny_model

folded._WIDEST = 0  # plain passes multiply one matrix after the other, as compiled ones do
BLOCKS, WINDOW_FULL = 7, 2  # from block 2 on a window of 6 is full


def graphs() -> int:
    """Compiled so far, in this process."""
    return counters["stats"]["unique_graphs"]


def streamed(model: CausalWanTransformer3DModel, batch: int = 1, width: int = 6) -> Iterator[tuple[Any, ...]]:
    """Block after block: the flow of its denoising passes, and the memory after it."""
    memory, text = model.allocate_memory(batch=batch, height=4, width=width), randn(batch, 5, 10)
    for i in range(BLOCKS):
        if i == 4:
            text = randn(batch, 5, 10, seed=9)
        if i == 5:
            memory = memory.clone()
        x = randn(batch, 3, 2, 4, width, seed=i)
        flows = [model.predict(x, torch.full((batch, 2), t), text, memory) for t in (900.0, 400.0)]
        model.commit(x, torch.zeros(batch, 2), text, memory)
        yield torch.stack(flows), memory.fingerprint(), graphs()


def compare(plan: str, *, offloaded: bool = False, **changes: Any) -> dict[str, Any]:
    """A plain model and a compiled one, perhaps with offloaded layers, over the same blocks."""
    plain = tiny_model(plan, window=6, **changes)
    compiled = copy.deepcopy(plain)
    compiled.execution = Execution(compile="eager")
    if offloaded:
        compiled.layers.offload("cpu")
    before = graphs()
    pairs = list(zip(streamed(plain), streamed(compiled), strict=True))
    after = [theirs[2] - before for _, theirs in pairs]
    return {
        "same bits": all(torch.equal(ours[0], theirs[0]) and ours[1] == theirs[1] for ours, theirs in pairs),
        "graphs": after[-1],
        "graphs after the window was full": after[-1] - after[WINDOW_FULL],
        "breaks": sum(counters["graph_break"].values()),
    }


def selfcheck() -> dict[str, Any]:
    """Exit code and words of ``arl2 selfcheck`` with compiled passes; what it compiled is forgotten afterwards."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = command(["selfcheck", "--compile", "eager", "--device", "cpu", "--quiet", "--threads", "1"])
    torch.compiler.reset()
    return {"code": code, "said": said.getvalue()}


def another_shape() -> int:
    """Blocks that a model gives in another batch and width than those it was compiled for."""
    model = tiny_model("HSHS", window=6)
    model.execution = Execution(compile="eager")
    return min(len(list(streamed(model))), len(list(streamed(model, batch=2, width=8))))


def main() -> None:
    found: dict[str, Any] = {"selfcheck": selfcheck()}
    with torch.no_grad():
        found |= {plan: compare(plan) for plan in ("HSHS", "HH", "SS")}
        found["blocks of another batch and width"] = another_shape()
        found["offloaded"] = compare("HSHS", offloaded=True)
        found["ranks"] = compare("HS", state_rank=0, ffn_rank=0)
        model = tiny_model("HH")
        model.execution = Execution(compile="eager")
        before = graphs()
        with use_backends(attention="naive"):
            found["graphs within use_backends"] = len(list(streamed(model))) - BLOCKS + graphs() - before
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
