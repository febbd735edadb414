"""Half-precision compute with float32 masters: what is frozen is kept in bfloat16, what trains stays float32.

The model computes in the dtype of its frozen weights, as it does in use, and keeps its own list of what is float32
whatever that is (norms, modulation, time, ``A_log``, ``dt_bias``, the delta rule's state). Autocast would round
inside the delta rule and the time network, and FSDP's mixed precision would round that list, so neither is used: the
small explicit casts of the modules that train (gates, ``phi``, low-rank changes) are the same with shards and without.
"""

import torch

from arl2.training.engine.task import Compute

_DTYPES: dict[Compute, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_of(compute: Compute) -> torch.dtype:
    """What ``loop.compute`` names."""
    return _DTYPES[compute]
