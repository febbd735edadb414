"""Published files of the tiny codec: loaded exactly, decoding as the layout's own rules say, foreign files refused."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from arl2.errors import CheckpointError
from arl2.video.tiny_codec import TinyCodec

LATENTS = torch.randn(2, 4, 5, 2, 3, generator=torch.Generator().manual_seed(1))
# The published layer chain of the decoder: where the memory layers, the 1 x 1 splits and the plain convolutions stand.
MEMORY, SPLITS, PLAIN = {3, 4, 5, 9, 10, 11, 15, 16, 17}, {7: 1, 13: 2, 19: 2}, {1, 8, 14, 20, 22}


def published_tensors(widths: tuple[int, ...] = (8, 6, 5, 4), first_split: int = 1) -> dict[str, Tensor]:
    """A file of the family with narrow layers: four latent channels, pictures as they are."""
    draw = torch.Generator().manual_seed(7)
    shapes: dict[str, tuple[int, ...]] = {"encoder.0.weight": (4, 3, 3, 3), "encoder.0.bias": (4,)}
    for stage, (split, down) in enumerate(((2, 3), (7, 8), (12, 13))):
        merged = (2, 2, 1)[stage]
        shapes |= {f"encoder.{split}.conv.weight": (4, 4 * merged, 1, 1), f"encoder.{down}.weight": (4, 4, 3, 3)}
        for place in range(down + 1, down + 4):
            shapes |= _memory(f"encoder.{place}", 4)
    shapes |= {"encoder.17.weight": (4, 4, 3, 3), "encoder.17.bias": (4,)}
    shapes |= {"decoder.1.weight": (widths[0], 4, 3, 3), "decoder.1.bias": (widths[0],)}
    for stage, (before, after) in enumerate(pairwise(widths)):
        at = 3 + 6 * stage
        for place in range(at, at + 3):
            shapes |= _memory(f"decoder.{place}", before)
        frames = (first_split, 2, 2)[stage]
        shapes |= {f"decoder.{at + 4}.conv.weight": (before * frames, before, 1, 1)}
        shapes |= {f"decoder.{at + 5}.weight": (after, before, 3, 3)}
    shapes |= {"decoder.22.weight": (3, widths[-1], 3, 3), "decoder.22.bias": (3,)}
    return {
        name: torch.randn(shape, generator=draw) * 0.8 / (torch.Size(shape[1:]).numel() or 1) ** 0.5
        for name, shape in shapes.items()
    }


def _memory(place: str, width: int) -> dict[str, tuple[int, ...]]:
    inputs = {0: 2 * width, 2: width, 4: width}
    weights = {f"{place}.conv.{i}.weight": (width, channels, 3, 3) for i, channels in inputs.items()}
    return weights | {f"{place}.conv.{i}.bias": (width,) for i in inputs}


def decoded_by_the_rules(tensors: dict[str, Tensor], latents: Tensor) -> Tensor:
    """Whole clips ``[B, C, T, h, w]`` through the published chain, layer by layer over all frames, to [0, 1] pixels."""
    clips = []
    for clip in latents.transpose(1, 2):
        x = torch.tanh(clip / 3) * 3
        for place in range(1, 23):
            if place in MEMORY:
                names = [f"decoder.{place}.conv.{i}" for i in (0, 2, 4)]
                past = torch.cat((torch.zeros_like(x[:1]), x[:-1]))
                y = torch.cat((x, past), dim=1)
                for i, name in enumerate(names):
                    y = F.conv2d(y, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=1)
                    y = y.relu() if i < 2 else y
                x = (y + x).relu()
            elif place in SPLITS:
                weight = tensors[f"decoder.{place}.conv.weight"]
                frames = SPLITS[place]
                width = x.shape[1]
                pieces = [F.conv2d(x, weight[weight.shape[0] - (frames - i) * width :][:width]) for i in range(frames)]
                x = torch.stack(pieces, dim=1).flatten(0, 1)
            elif place in PLAIN:
                x = F.conv2d(x, tensors[f"decoder.{place}.weight"], tensors.get(f"decoder.{place}.bias"), padding=1)
            elif place in (6, 12, 18):
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            else:
                assert place in (2, 21)
                x = x.relu()
        clips.append(x[3:])
    return torch.stack(clips).transpose(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("first_split", [1, 2])
def test_a_published_file_decodes_by_the_published_rules(tmp_path: Path, suffix: str, first_split: int) -> None:
    tensors = published_tensors(first_split=first_split)
    path = tmp_path / f"taew2_1{suffix}"
    _ = torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    codec = TinyCodec.from_published(path)
    ours = codec.decode(LATENTS)
    assert ours.shape == (2, 3, 17, 16, 24)
    torch.testing.assert_close((ours + 1) / 2, decoded_by_the_rules(tensors, LATENTS), rtol=1e-4, atol=1e-5)
    cache = codec.new_cache()
    parts = [codec.decode(block, cache) for block in LATENTS.split([1, 3, 1], dim=2)]
    assert torch.equal(torch.cat(parts, dim=2), ours)
    assert codec.encode(ours[:, :, :9].clamp(-1, 1)).shape == (2, 4, 3, 2, 3)
    assert not codec.training


@torch.no_grad()
def test_it_is_loaded_in_the_dtype_asked_for_and_saved_as_ours(tmp_path: Path) -> None:
    torch.save({name: x.half() for name, x in published_tensors().items()}, tmp_path / "taew2_1.pth")
    codec = TinyCodec.from_published(tmp_path / "taew2_1.pth")
    assert codec.dtype == torch.float32
    assert TinyCodec.from_published(tmp_path / "taew2_1.pth", torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    codec.save_pretrained(tmp_path / "codec")
    assert torch.equal(TinyCodec.from_pretrained(tmp_path / "codec").eval().decode(LATENTS), codec.decode(LATENTS))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decoder.4.conv.2.bias": None}, r"1 tensors do not fit, first: decoder\.4\.conv\.2\.bias is missing"),
        (
            {"decoder.4.skip.weight": (8, 8, 1, 1)},
            r"1 tensors do not fit, first: .*4\.skip\.weight is unexpected",
        ),
        ({"decoder.7.conv.weight": (12, 8, 1, 1)}, r"\[12, 8, 1, 1\] instead of \[8, 8, 1, 1\]"),
        ({"encoder.0.weight": (4, 5, 3, 3)}, "takes 5 channels"),
        ({"encoder.0.weight": None}, r"no convolution encoder\.0\.weight"),
        ({"decoder.20.weight": (4,)}, r"no convolution decoder\.20\.weight"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, tuple[int, ...] | None], said: str) -> None:
    tensors = published_tensors()
    for name, shape in change.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = torch.zeros(shape)
    torch.save(tensors, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=said):
        TinyCodec.from_published(tmp_path / "file.pth")
