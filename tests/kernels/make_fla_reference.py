"""Writes ``fla-core.safetensors``: states of fla-core's token loops, and what they were made from.

    pip download fla-core==0.6.0 --no-deps && unzip fla_core-0.6.0-*.whl -d fla-core
    python tests/kernels/make_fla_reference.py fla-core

The loops are read from their files, since the package around them needs Triton. Needs einops.
"""

import importlib.util
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

TOKENS, HEADS, KEY, VALUE = 40, 2, 8, 6


def loop(folder: Path, form: str, name: str):
    spec = importlib.util.spec_from_file_location(form, folder / "fla" / "ops" / form / "naive.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def drawn() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)

    def normal(*last: int) -> Tensor:
        return torch.randn(1, TOKENS, HEADS, *last, generator=draw)

    return {
        "k": normalize(normal(KEY), dim=-1),
        "v": normal(VALUE),
        "g": logsigmoid(3 + normal(KEY)),
        "beta": 2 * normal().sigmoid(),
        "erase": normal(KEY).sigmoid(),
        "write": normal(VALUE).sigmoid(),
        "initial_state": torch.randn(1, HEADS, KEY, VALUE, generator=draw),
    }


def main(folder: Path) -> None:
    x = drawn()
    given = {"q": x["k"], "k": x["k"], "v": x["v"], "initial_state": x["initial_state"], "output_final_state": True}
    states = {}
    gated = loop(folder, "gated_delta_rule", "naive_recurrent_gated_delta_rule")
    _, states["gated_delta"] = gated(**given, g=x["g"][..., 0], beta=x["beta"])
    kimi = loop(folder, "kda", "naive_recurrent_kda")
    _, states["kimi_delta"] = kimi(**given, g=x["g"], beta=x["beta"])
    second = loop(folder, "gdn2", "naive_recurrent_gdn2")
    _, states["gated_delta_2"] = second(**given, g=x["g"], b=x["erase"], w=x["write"])
    tensors = {name: tensor.contiguous() for name, tensor in (x | states).items()}
    save_file(tensors, Path(__file__).with_name("fla-core.safetensors"), metadata={"made by": "fla-core 0.6.0"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
