"""Where the parts of a model go so that they fit: on the device, or in the machine's memory."""

from dataclasses import replace

import torch

from arl2.pipeline.budget import TIGHT, MemoryBudgetError, MemoryPlan, planned_anew
from arl2.pipeline.devices import has_own_memory
from arl2.pipeline.options import Offload


def placed(
    plan: MemoryPlan, offload: Offload, available: int | None, device: str, *, needs_graphs: bool = False
) -> MemoryPlan:
    """The plan with the transformer's layers and the text encoder where there is room for them.

    Args:
        plan: everything on the device.
        offload: ``"none"`` keeps it there; ``"layers"`` offloads the layers. ``"auto"`` first tries the text encoder
            elsewhere, which costs seconds for each new prompt, then the layers, which cost every pass. Before either,
            and with ``"none"`` too, CUDA graphs are given up, which cost least.
        available: bytes free on the device; None if it does not say: then nothing but what is asked for.
        device: with memory of its own, or nothing is changed.
        needs_graphs: they are not given up, and nothing is offloaded.

    Returns:
        The first that fits with room to spare, else the one that takes least.
    """
    if not has_own_memory(device):
        return plan
    whole = plan.work
    plain = whole if needs_graphs else replace(whole, graphs=False)
    apart = replace(plain, text_encoder="elsewhere")
    layers = [] if needs_graphs else [replace(work, offload=True) for work in (plain, apart)]
    works = {"none": [whole, plain], "layers": layers or [whole], "auto": [whole, plain, apart, *layers]}[offload]
    plans = [plan if work == whole else planned_anew(plan, work) for work in works]
    fitting = (one for one in plans if available is None or one.peak <= TIGHT * available)
    return next(fitting, plans[-1])


def check_host_fits(plan: MemoryPlan, available: int | None) -> None:
    """Refuse weights that would wait in the machine's memory where there is not enough.

    Args:
        available: bytes free on the machine; None if it does not say.

    Raises:
        MemoryBudgetError: as said.
    """
    if available is None or plan.host <= available:
        return
    half = plan.work.dtype.itemsize > torch.bfloat16.itemsize
    advice = "dtype=bfloat16 halves that" if half else "free some, or take a GPU with more memory or a smaller model"
    raise MemoryBudgetError(
        f"What is kept off the device takes about {plan.host / 1e9:.1f} GB of the machine's memory, but "
        f"{available / 1e9:.1f} GB are free; {advice}."
    )


def told(plan: MemoryPlan, whole: MemoryPlan, available: int | None, device: str) -> list[str]:
    """Sentences: how much memory a plan takes, and what it gives up of the ``whole``, and why."""
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in plan.parts().items())
    sentences = [f"memory on {device}: about {plan.peak / 1e9:.2f} GB at the most ({parts})"]
    apart = [
        *(["the layers of the transformer (two are on it at a time)"] if plan.work.offload else []),
        *(["the text encoder"] if plan.work.text_encoder == "elsewhere" and plan.host else []),
    ]
    known = "" if available is None else f", of {available / 1e9:.2f} GB that are free"
    if apart:
        sentences.append(
            f"kept off {device}, in {plan.host / 1e9:.2f} GB of the machine's memory: {' and '.join(apart)}; with "
            f"everything on it, it would be {whole.peak / 1e9:.2f} GB{known}"
        )
    elif whole.seat and not plan.seat:
        sentences.append(f"passes run without CUDA graphs: with them it would be {whole.peak / 1e9:.2f} GB{known}")
    return sentences
