"""Footprints of the parts: counted against models and files, estimates against the tensors that are alive at once."""

import json
import struct
import weakref

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from arl2.errors import CheckpointError, ConfigError
from arl2.model.cost import pass_bytes, transformer_size
from arl2.model.precision import cast_model
from arl2.model.presets import preset_config
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.footprint import TINY_DECODER, parameters_of, wan_decoder
from arl2.video.tiny_codec import TinyCodec
from arl2.video.wan_codec import WanCodec
from rollout.wan_vae import VAE_CONFIG
from support import randn, tiny_config

WAN = preset_config("wan2.1-t2v-1.3b")


class Alive(TorchDispatchMode):
    """Bytes of the tensors made under it that are alive at once; works on the meta device, too."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, object] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.known:
                self.known[tensor.untyped_storage()._cdata] = tensor.untyped_storage()  # made outside
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is None or storage._cdata in self.known:
                continue
            self.known[storage._cdata] = None
            self.now += storage.nbytes()
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, key: int, size: int) -> None:
        self.known.pop(key)
        self.now -= size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", ["S", "HSH"])
def test_weights_are_what_a_model_holds(layers, dtype):
    config = tiny_config(layers)
    model = cast_model(CausalWanTransformer3DModel(**config), dtype)
    held = sum(parameter.nbytes for parameter in model.parameters())
    assert transformer_size(model.config).weight_bytes(dtype) == held
    assert transformer_size(WAN)[1:] == transformer_size({**WAN, "block_frames": 1})[1:]
    assert sum(transformer_size(WAN)[1:]) == 1_418_996_800


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("layers", "rank", "ffn"), [("SS", 0, 1500), ("HH", 0, 256), ("HS", 8, 1500)])
def test_working_memory_of_a_pass(layers, rank, ffn, dtype, monkeypatch):
    """The estimate covers the tensors that are alive at once, without being half as much again.

    As on a GPU: a CPU without instructions for bfloat16 has a float32 copy of one weight and its tokens besides.
    """
    monkeypatch.setattr("arl2.kernels.linear._half_is_slow", lambda _: False)
    sizes = {"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": ffn, "text_dim": 16, "text_len": 8}
    model = CausalWanTransformer3DModel(layer_plan=layers, **sizes, state_rank=rank, ffn_rank=rank)
    model = cast_model(model, dtype).eval()
    memory = model.allocate_memory(batch=1, height=16, width=26, window=6)
    text = model.prompt_context(randn(1, 8, 16))
    latents, steps = randn(1, 16, 3, 16, 26), torch.full((1, 3), 9.0)
    peaks = []
    with torch.no_grad():
        # First what narrow models on a CPU fold once and keep, as large as what it is made of.
        for measured in (False, True):
            for run in (model.commit, model.predict, model.commit):
                with Alive() as alive:
                    run(latents, steps, text, memory)
                if measured:
                    peaks.append(alive.peak)
    estimate = pass_bytes(model.config, tokens=3 * 8 * 13, dtype=dtype)
    assert 1.0 <= estimate / max(peaks) <= 1.5


@pytest.mark.parametrize(
    "changes", [{}, {"base_dim": 32}, {"dim_mult": [1, 1, 2, 2], "base_dim": 64}, {"decoder_base_dim": 48}]
)
def test_decoding_memory_of_the_wan_codec(changes):
    with torch.device("meta"):
        codec = WanCodec(AutoencoderKLWan(**{**VAE_CONFIG, **changes})).eval()
    rows, columns = 30, 52
    cache = codec.new_cache()
    with torch.no_grad(), Alive() as alive:
        for frames in (3, 3, 3):
            alive.peak = held = alive.now
            codec.decode(torch.empty(1, 16, frames, rows, columns, device="meta"), cache)
    decoder = wan_decoder(codec.config, 0)
    sizes = {"batch": 1, "pixels": 64 * rows * columns, "dtype": torch.float32}
    # The last block's picture is gone, so what is alive is what the decoder remembers: that is counted exactly.
    assert decoder.cache_bytes(**sizes) == held
    assert 1.0 <= decoder.work_bytes(**sizes) / (alive.peak - held) <= 1.1


def test_remembered_sums_are_float32_in_half_precision():
    with torch.device("meta"):
        codec = WanCodec(AutoencoderKLWan(**VAE_CONFIG)).to(torch.bfloat16).eval()
    cache = codec.new_cache()
    with torch.no_grad():
        codec.decode(torch.empty(1, 16, 1, 30, 52, device="meta", dtype=torch.bfloat16), cache)
    counted = wan_decoder(codec.config, 0).cache_bytes(batch=1, pixels=64 * 30 * 52, dtype=torch.bfloat16)
    assert counted == sum(x.nbytes for x in cache.features.values())


def test_decoding_memory_of_the_tiny_codec():
    with torch.device("meta"):
        codec = TinyCodec().eval()
    latent, cache = torch.empty(1, 16, 1, 12, 20, device="meta"), codec.new_cache()
    with torch.no_grad(), Alive() as alive:
        for _ in range(3):
            alive.peak = held = alive.now
            codec.decode(latent, cache)
    sizes = {"batch": 1, "pixels": 64 * 12 * 20, "dtype": torch.float32}
    assert TINY_DECODER.parameters == sum(parameter.numel() for parameter in codec.parameters())
    assert TINY_DECODER.cache_bytes(**sizes) == pytest.approx(held, rel=0.01)
    assert 0.99 <= TINY_DECODER.work_bytes(**sizes) / (alive.peak - held) <= 1.1


def test_another_architecture_of_codec_is_refused():
    with pytest.raises(ConfigError, match=r"Wan 2\.2"):
        wan_decoder({**VAE_CONFIG, "is_residual": True}, 1)


# Sizes of files.


def test_parameters_are_read_off_headers(tmp_path):
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}, tmp_path / "1.safetensors")
    save_file({"c": torch.zeros(())}, tmp_path / "2.safetensors", metadata={"format": "pt"})
    assert parameters_of(tmp_path / "1.safetensors") == 22
    assert parameters_of(tmp_path) == 23
    (tmp_path / "x.pth").write_bytes(bytes(101))
    assert parameters_of(tmp_path / "x.pth") == 50


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"{a:1",
        *(
            struct.pack("<Q", len(header)) + header
            for shape in ([-1, -4], [10**9, 10**9], ["x"], 5, [1.5])
            for header in [json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()]
        ),
    ],
)
def test_headers_that_lie(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        parameters_of(path)


def test_sizes_of_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="no file or folder"):
        parameters_of(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"has no \.safetensors file"):
        parameters_of(tmp_path)
