"""The one word every streaming pass must say: does it read memory, or does it write it?"""

from enum import Enum


class Access(Enum):
    """What a pass over a block does to memory.

    ``READ``: a denoising pass; memory is left bit-identical.
    ``COMMIT``: the clean pass over the finished block; every layer attends to memory as it was, then writes it, once.
    """

    READ = "read"
    COMMIT = "commit"
