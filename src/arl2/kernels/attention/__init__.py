"""Softmax attention: whole, or restricted to ranges of keys per range of queries."""

from arl2.kernels.attention.dispatch import BACKENDS as BACKENDS
from arl2.kernels.attention.dispatch import range_attention as range_attention
from arl2.kernels.attention.dispatch import softmax_attention as softmax_attention
from arl2.kernels.attention.ranges import QueryRange as QueryRange
from arl2.kernels.attention.ranges import Ranges as Ranges
