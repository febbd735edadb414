"""The components of a pipeline on their devices: all on one, or the layers of the transformer offloaded from it."""

from typing import Any

import torch
from torch import nn

from arl2.errors import ConfigError
from arl2.model.offload import Transfers
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.streams.components import Components

# Arguments of diffusers' ``enable_group_offload`` and the values that say what is done here.
_AS_HERE: dict[str, tuple[Any, ...]] = {
    "offload_device": ("cpu", torch.device("cpu")),
    "offload_type": ("block_level",),
    "num_blocks_per_group": (1, None),
    "non_blocking": (True, False),
    "use_stream": (True,),
    "record_stream": (True, False),
    "low_cpu_mem_usage": (False,),
    "offload_to_disk_path": (None,),
    "exclude_modules": (None,),
}
NOT_OF_RANKS = "Layers of a stream that several ranks share are not offloaded; use offload 'none', or one process."
NO_OTHER_OFFLOADING = (
    "A stream needs its transformer in every pass, so components are not moved in and out. Use "
    "pipe.enable_group_offload('cuda'), which keeps two layers of it on the device; the text encoder leaves the device "
    "once a prompt is read."
)


def place(components: Components, device: str, *, offload: bool, text_on_device: bool = True) -> None:
    """Move components to where they compute.

    Args:
        components: on the CPU.
        device: of all of them.
        offload: the layers of the transformer wait in the machine's memory.
        text_on_device: else the text part stays where it is.

    Raises:
        ConfigError: layers cannot be offloaded from this device, or are already.
    """
    if offload:
        offload_transformer(components.transformer, device)
    elif device != "cpu":
        components.transformer.to(device)
    if device == "cpu":
        return
    others = [components.codec, components.verifier, *([components.text] if text_on_device else [])]
    for part in others:
        if isinstance(part, nn.Module):
            part.to(device)


def offload_transformer(
    transformer: CausalWanTransformer3DModel, device: str | torch.device, transfers: Transfers | None = None
) -> None:
    """Small parts to the device, layers to the machine's memory; see :meth:`arl2.model.offload.LayerStack.offload`.

    Raises:
        ConfigError: a transformer whose streams several ranks share, and as said there.
    """
    if transformer.parallel.ranks > 1:
        raise ConfigError(NOT_OF_RANKS)
    transformer.unfuse_qkv_projections()  # every layer is packed into one piece of its own
    transformer.layers.offload(device, transfers)
    transformer.execution = transformer.execution  # what was recorded over the weights goes
    for part in transformer.children():
        if part is not transformer.layers:
            part.to(device)


def check_group_options(options: dict[str, Any]) -> None:
    """Refuse options of diffusers' ``enable_group_offload`` that ask for something else than is done here.

    Raises:
        ConfigError: as said.
        TypeError: an unknown option.
    """
    for name, value in options.items():
        if name not in _AS_HERE:
            raise TypeError(f"Unknown argument '{name}'. Accepted are onload_device, {', '.join(_AS_HERE)}.")
        if not any(type(value) is type(one) and value == one for one in _AS_HERE[name]):
            accepted = " or ".join(repr(one) for one in _AS_HERE[name])
            raise ConfigError(
                f"Got {name} {value!r:.80}; layers wait in the machine's memory and are copied one by one, ahead of "
                f"time, so {name} is {accepted}. Leave it out."
            )
