"""The input of a causal convolution, made in one pass over memory."""

from arl2.kernels.causal_input.dispatch import causal_input
from arl2.kernels.causal_input.shapes import Frames, Interleaved, interleaved, pixels

__all__ = ["Frames", "Interleaved", "causal_input", "interleaved", "pixels"]
