"""The weights of a UMT5 encoder as they lie in files or in memory, and the encoder built from them when needed."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from arl2.files.float8 import widened
from arl2.files.plain import PICKLES
from arl2.files.tensors import require_intact
from arl2.text.umt5_layout import EMBEDDING, TIED_EMBEDDING, translate_encoder

_IDENTITY = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "feed_forward_proj",
)


@dataclass(frozen=True)
class UMT5Weights:
    """Everything that makes an encoder, before it is one. Tensors of files are mapped: read only when used.

    Attributes:
        config: sizes and settings.
        tensors: by transformers' names, the embedding once.
        files: the folder or file they are mapped from; None: they are in memory.
        scales: factors of tensors in 8 bits, by the same names.
    """

    config: UMT5Config
    tensors: dict[str, Tensor]
    files: Path | None = None
    scales: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, encoder: UMT5EncoderModel) -> "UMT5Weights":
        """The weights of an encoder in memory, shared with it.

        Raises:
            CheckpointError: tensors other than those of a UMT5 encoder with a gated feed-forward.
        """
        named = {name: tensor.detach() for name, tensor in encoder.state_dict().items()}
        return cls(encoder.config, translate_encoder(named, "The encoder").tensors)

    def build(self, *, device: torch.device, dtype: torch.dtype) -> UMT5EncoderModel:
        """The encoder, frozen, with the weights on ``device`` in ``dtype``.

        It is made without memory and given one tensor after the other, so there is never a second copy of them all;
        weights that lie on the device in that dtype already are shared.

        Raises:
            CheckpointError: a file whose checksums do not match its bytes.
        """
        if self.files is not None and self.files.suffix in PICKLES:
            require_intact(self.files, self.tensors)
        with torch.device("meta"):
            encoder = UMT5EncoderModel(self.config)
        # Cast there rather than here: a GPU is far quicker at it, and no second copy is made on this side.
        placed = {
            name: widened(tensor.to(device), self.scales.get(name), dtype=dtype)
            for name, tensor in self.tensors.items()
        }
        encoder.load_state_dict({**placed, TIED_EMBEDDING: placed[EMBEDDING]}, strict=True, assign=True)
        encoder.set_input_embeddings(encoder.get_input_embeddings())  # one parameter again, not two of one memory
        return encoder.requires_grad_(False).eval()

    def fingerprint(self, dtype: torch.dtype) -> str:
        """Names an encoder that computes in ``dtype``, without reading it whole: 64 hexadecimal digits.

        It is the SHA-256 of sizes, settings and, of every tensor, the first, the middle and the last row as rounded to
        ``dtype``. The same weights have the same name in any layout and on any device. Retrained or merged weights
        differ in every row of some matrix; two files that differ in other rows alone are not told apart.
        """
        described = self.config.to_dict()
        settings = {name: described[name] for name in _IDENTITY}
        digest = hashlib.sha256(json.dumps([settings, str(dtype)]).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            last = tensor.shape[0] - 1
            scale = self.scales.get(name)
            shown = [slice(None)] if tensor.ndim == 1 else [slice(i, i + 1) for i in (0, last // 2, last)]
            digest.update(name.encode())
            for rows in shown:
                of_rows = scale if scale is None or scale.numel() == 1 else scale.reshape(-1)[rows]
                numbers = widened(tensor[rows].to("cpu"), of_rows, dtype=dtype)
                digest.update(numbers.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


class EncoderPlace:
    """Keeps at most one encoder built: on the CPU until another is requested, elsewhere only as long as it is used."""

    def __init__(self, weights: UMT5Weights) -> None:
        self.weights = weights
        self._built: UMT5EncoderModel | None = None

    @property
    def loaded(self) -> bool:
        """Whether an encoder is in memory now."""
        return self._built is not None

    @contextmanager
    def encoder(self, *, device: torch.device, dtype: torch.dtype, keep: bool) -> Iterator[UMT5EncoderModel]:
        """The encoder for the time of a ``with``.

        Args:
            device, dtype: where and in what it computes.
            keep: leave it there afterwards; else another device than the CPU is given back, and the next use places
                the weights again from where they lie.
        """
        built = self._built
        if built is None or (built.device, built.dtype) != (device, dtype):
            self._built = built = None  # the old one goes before the new one comes
            built = self._built = self.weights.build(device=device, dtype=dtype)
        try:
            yield built
        finally:
            if not keep and device.type != "cpu":
                self._built = None
