"""From a layer's spec to its module: the one place that knows all kinds of attention."""

from arl2.attention.base import SelfAttention
from arl2.attention.hybrid import HybridAttention
from arl2.attention.plan import AttentionSpec, HybridSpec, SoftmaxSpec
from arl2.attention.softmax import SoftmaxAttention


def build_self_attention(spec: AttentionSpec, *, width: int, heads: int, eps: float) -> SelfAttention:
    """The self-attention of one layer."""
    match spec:
        case SoftmaxSpec():
            return SoftmaxAttention(width, heads, eps, spec)
        case HybridSpec():
            return HybridAttention(width, heads, eps, spec)
