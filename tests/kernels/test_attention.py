"""Softmax attention over ranges: each backend against the masked one in float64."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.attention.layout import ClipLayout
from arl2.errors import ConfigError
from arl2.geometry import split_blocks
from arl2.kernels.attention import QueryRange, range_attention, softmax_attention
from arl2.kernels.attention.naive import dense_mask
from arl2.kernels.attention.ranges import merge
from arl2.kernels.norm import l2_norm, layer_norm, rms_norm
from support import randn


def qkv(tokens: int, dtype: torch.dtype = torch.float64, more_keys: int = 0):
    sizes = {"q": tokens, "k": tokens + more_keys, "v": tokens + more_keys}
    return {name: randn(2, size, 3, 8, seed=seed, dtype=dtype) for seed, (name, size) in enumerate(sizes.items())}


def test_sdpa_equals_naive():
    torch.testing.assert_close(softmax_attention(**qkv(13)), softmax_attention(**qkv(13), backend="naive"))


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
@settings(deadline=None, max_examples=40)
@given(
    blocks=st.integers(1, 4),
    size=st.integers(1, 3),
    first=st.integers(1, 3),
    tokens=st.integers(1, 5),
    forcing=st.booleans(),
    window=st.one_of(st.none(), st.integers(3, 9)),
    sink=st.integers(0, 2),
    seen=st.sampled_from(["own block", "window", "moved sinks"]),
)
def test_ranges_equal_the_mask(backend, blocks, size, first, tokens, forcing, window, sink, seen):
    first, sink = min(first, size), sink if window else 0
    layout = ClipLayout(split_blocks(first + (blocks - 1) * size, size, first), tokens, forcing)
    ranges, moves = layout.own_block(), ()
    if seen == "window":
        ranges = layout.visible(window, sink)
    if seen == "moved sinks":
        ranges, moves = layout.visible_with_moved_sinks(window, sink)
    tensors = qkv(layout.clip_tokens * len(layout.copies()), more_keys=len(moves) * sink * tokens)
    torch.testing.assert_close(
        range_attention(**tensors, ranges=ranges, backend=backend),
        range_attention(**tensors, ranges=ranges, backend="naive"),
    )


@pytest.mark.parametrize(
    ("forcing", "window", "sink"), [(False, None, 0), (True, None, 0), (True, 5, 1), (False, 3, 0), (True, 3, 1)]
)
def test_flex_attention_equals_the_mask(forcing, window, sink):
    layout = ClipLayout(split_blocks(6, 2), 4, forcing)
    ranges, moves = layout.visible_with_moved_sinks(window, sink)
    tensors = qkv(layout.clip_tokens * len(layout.copies()), torch.float32, more_keys=len(moves) * sink * 4)
    with warnings.catch_warnings():
        # Uncompiled flex attention warns that it is slow; compiling it needs a C++ compiler or a GPU.
        warnings.simplefilter("ignore")
        flex = range_attention(**tensors, ranges=ranges, backend="flex")
    torch.testing.assert_close(flex, range_attention(**tensors, ranges=ranges, backend="naive"), rtol=1e-4, atol=1e-5)


def test_a_window_drawn_by_hand():
    # Blocks of 2 frames, window 4 with 1 sink: block 2 (frames 4, 5) sees frame 0, frame 3 and itself.
    layout = ClipLayout(split_blocks(6, 2), 1, False)
    seen = dense_mask(layout.visible(4, 1), 6, 6).int().tolist()
    assert seen == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 0, 0, 1, 1, 1],
        [1, 0, 0, 1, 1, 1],
    ]


def test_moved_sinks_drawn_by_hand():
    # As above; block 2 sees, instead of frame 0, the copy of it that stands 2 frames later: behind the 6 of the clip.
    layout = ClipLayout(split_blocks(6, 2), 1, False)
    seen, moves = layout.visible_with_moved_sinks(4, 1)
    assert moves == (2,)
    assert dense_mask(seen, 6, 7).int().tolist()[3:] == [
        [1, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 1, 1],
    ]
    assert layout.visible_with_moved_sinks(6, 1) == (layout.visible(6, 1), ())


def test_teacher_forcing_drawn_by_hand():
    # Two blocks of one frame; columns are clean 0, clean 1, noisy 0, noisy 1.
    layout = ClipLayout(split_blocks(2, 1), 1, True)
    assert dense_mask(layout.visible(None, 0), 4, 4).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [1, 0, 0, 1],
    ]
    assert dense_mask(layout.own_block(), 4, 4).int().tolist() == torch.eye(4, dtype=torch.int).tolist()


def test_blocks_of_unequal_size_that_see_themselves_alone():
    ranges = (QueryRange(0, 2, ((0, 2),)), QueryRange(2, 5, ((2, 5),)))
    torch.testing.assert_close(
        range_attention(**qkv(5), ranges=ranges), range_attention(**qkv(5), ranges=ranges, backend="naive")
    )


def test_merge_joins_what_touches():
    assert merge([(4, 6), (0, 2), (2, 3), (5, 9), (7, 7)]) == ((0, 3), (4, 9))


@pytest.mark.parametrize("run", [softmax_attention, lambda **kw: range_attention(**kw, ranges=())])
def test_unknown_backend_is_refused(run):
    with pytest.raises(ConfigError, match=r"'flash9'.*sdpa"):
        run(**qkv(3), backend="flash9")


def test_norms_by_their_formulas():
    x, weight = randn(4, 6), randn(6, seed=1)
    torch.testing.assert_close(
        rms_norm(x, weight, 1e-6), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    )
    torch.testing.assert_close(l2_norm(x), x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt())
    centred = x - x.mean(-1, keepdim=True)
    plain = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(layer_norm(x, 1e-6), plain)
    torch.testing.assert_close(layer_norm(x, 1e-6, weight, weight), plain * weight + weight)
    assert rms_norm(x.bfloat16(), weight, 1e-6).dtype == torch.bfloat16
    assert layer_norm(x.bfloat16(), 1e-6).dtype == torch.float32
