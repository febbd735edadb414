"""Self-attention of the two kinds, the memory they keep, and cross-attention to the text.

Attend locally: :mod:`arl2.attention.softmax`. Remember linearly: :mod:`arl2.attention.hybrid` and its
:mod:`arl2.attention.state_branch`. Write memory once: :class:`arl2.attention.access.Access`.
"""
