"""Self-attention of every kind, the memory they keep, and cross-attention to the text.

Attend locally: :mod:`arl2.attention.softmax`. Remember linearly: :mod:`arl2.attention.hybrid` and its
:mod:`arl2.attention.state_branch`. What any kind must say and do: :mod:`arl2.attention.kind`. Which are known:
:mod:`arl2.attention.plan`.
"""
