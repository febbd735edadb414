"""The text part of Wan 2.1: its tokenizer and its UMT5 encoder, loaded only when a prompt needs them."""

import html
import json
import logging
import re
import threading
from pathlib import Path

import ftfy
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from arl2.errors import CheckpointError, ConfigError, NonFiniteError
from arl2.files.atomic import write_atomically
from arl2.files.plain import read_json
from arl2.files.regular import parsed_by_others
from arl2.kernels.linear import FastProducts
from arl2.text.embedding_cache import EmbeddingCache, embedding_key
from arl2.text.umt5_files import open_encoder_file, open_encoder_folder, open_own_tokenizer, open_tokenizer
from arl2.text.umt5_weights import EncoderPlace, UMT5Weights

logger = logging.getLogger(__name__)

LENGTH = 512
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
TOKENIZER_FOLDER, ENCODER_FOLDER, SETTINGS = "tokenizer", "text_encoder", "umt5_text.json"
_SHOWN = 200  # characters of what was cut off
_PROMPT_SHOWN = 60
_LONE_SURROGATE = re.compile("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")


def clean_prompt(prompt: str) -> str:
    """A prompt as the published Wan code cleans it before its tokenizer sees it.

    Broken encodings are repaired, HTML entities resolved twice, runs of white space collapsed, ends stripped.

    Raises:
        ConfigError: nothing is left, or the prompt has half a surrogate pair, which is no character.
    """
    lone = _LONE_SURROGATE.search(prompt)
    # The repair below would silently turn it into a replacement sign.
    if lone is not None:
        raise ConfigError(
            f"Character {lone.start()} of the prompt is U+{ord(lone[0]):04X}, half of a surrogate pair and no valid "
            "Unicode; decode the prompt as UTF-8."
        )
    repaired = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    cleaned = re.sub(r"\s+", " ", repaired).strip()
    if not cleaned:
        raise ConfigError(f"The prompt {prompt[:_PROMPT_SHOWN]!r} is empty or white space; say what the video shows.")
    return cleaned


class UMT5Text(nn.Module):
    """A `TextPart` over UMT5.

    The weights stay where they lie, mapped, until a prompt is encoded that the cache does not know. On the CPU the
    encoder then stays in memory. With another device (``text.to("cuda")``, or the pipeline's ``to``) it is there only
    while prompts are encoded, unless ``keep_on_device``. The encoder is frozen. Threads take turns.

    It computes in bfloat16, in which Wan's is published, or in float32. Not in float16: the feed-forward's last
    product goes beyond its range. Norms are computed in float32 in any case.

    Args:
        tokenizer: pieces of words to ids, with the end mark.
        weights: of the encoder.
        length: rows of every output; longer prompts are cut, with a warning.
        torch_dtype: bfloat16 or float32.
        cache: where embeddings are kept; None: nowhere. It can be set later (``text.cache = ...``).
        keep_on_device: leave the encoder on a device other than the CPU.

    Raises:
        ConfigError: another dtype, or a length below 2.
        CheckpointError: the tokenizer has ids that the encoder does not know.
    """

    place: Tensor

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        weights: UMT5Weights,
        *,
        length: int = LENGTH,
        torch_dtype: torch.dtype = torch.bfloat16,
        cache: EmbeddingCache | None = None,
        keep_on_device: bool = False,
    ) -> None:
        super().__init__()
        if torch_dtype not in DTYPES.values():
            raise ConfigError(f"UMT5 computes in torch.bfloat16 or torch.float32, not in {torch_dtype}; choose one.")
        if length < 2:
            raise ConfigError(f"The text length is {length}; give at least 2, a token and the end mark.")
        largest = max(tokenizer.get_vocab().values())
        if largest >= weights.config.vocab_size:
            raise CheckpointError(
                f"The tokenizer has ids up to {largest} and the encoder {weights.config.vocab_size} of them; they do "
                "not belong together."
            )
        self.tokenizer = tokenizer
        self.weights = weights
        self.cache = cache
        self.keep_on_device = keep_on_device
        self._length = length
        self._encoder = EncoderPlace(weights)
        self._fingerprints: dict[torch.dtype, str] = {}
        # Two threads would build the encoder twice, and set the length that the tokenizer cuts at in between.
        self._turn = threading.Lock()
        # Empty, and moved by whatever moves a module: so the device is known before there are weights on it.
        self.register_buffer("place", torch.empty(0, dtype=torch_dtype), persistent=False)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        length: int | None = None,
        cache: EmbeddingCache | None = None,
        keep_on_device: bool = False,
    ) -> "UMT5Text":
        """Open a folder with ``tokenizer`` and ``text_encoder``, as ``save_pretrained`` or diffusers write it.

        Such as a download of ``Wan-AI/Wan2.1-T2V-1.3B-Diffusers``. Touches no network.

        Args:
            folder: the folder of both.
            torch_dtype, length: as saved if None; bfloat16 and 512 in a folder that diffusers wrote.
            cache, keep_on_device: as for the class.

        Raises:
            CheckpointError: a part is missing, damaged, or not exactly one UMT5 encoder.
            ConfigError: a dtype or a length that is not accepted.
        """
        folder = Path(folder)
        for part in (TOKENIZER_FOLDER, ENCODER_FOLDER):
            if not (folder / part).is_dir():
                raise CheckpointError(
                    f"{folder} has no folder {part!r}; give one that save_pretrained wrote or a diffusers pipeline."
                )
        saved_length, saved_dtype = _read_settings(folder / SETTINGS)
        return cls(
            open_tokenizer(folder / TOKENIZER_FOLDER),
            open_encoder_folder(folder / ENCODER_FOLDER),
            length=saved_length if length is None else length,
            torch_dtype=torch_dtype or saved_dtype,
            cache=cache,
            keep_on_device=keep_on_device,
        )

    @classmethod
    def from_wan_original(
        cls,
        weights: str | Path,
        tokenizer: str | Path | None,
        *,
        torch_dtype: torch.dtype = torch.bfloat16,
        length: int = LENGTH,
        cache: EmbeddingCache | None = None,
        keep_on_device: bool = False,
    ) -> "UMT5Text":
        """Open weights and tokenizer that lie apart, such as the original files of Wan 2.1. Touches no network.

        Args:
            weights: ``models_t5_umt5-xxl-enc-bf16.pth``, ComfyUI's file, or a folder ``text_encoder``.
            tokenizer: the folder ``google/umt5-xxl``; None: it is inside the weights' file, as in ComfyUI's.
            torch_dtype, length, cache, keep_on_device: as for the class.

        Raises:
            CheckpointError: a file is missing, damaged, or not exactly one UMT5 encoder.
            ConfigError: a dtype or a length that is not accepted.
        """
        return cls(
            open_own_tokenizer(Path(weights)) if tokenizer is None else open_tokenizer(Path(tokenizer)),
            open_encoder_folder(Path(weights)) if Path(weights).is_dir() else open_encoder_file(Path(weights)),
            torch_dtype=torch_dtype,
            length=length,
            cache=cache,
            keep_on_device=keep_on_device,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer, encoder (in its dtype), length and dtype; ``from_pretrained`` reads them.

        Raises:
            CheckpointError: the weights are mapped from the folder that would be written.
        """
        folder = Path(folder)
        target = folder / ENCODER_FOLDER
        if self.weights.files is not None and self.weights.files.resolve().is_relative_to(target.resolve()):
            raise CheckpointError(f"The encoder is read from {target} while it is used; save it to another folder.")
        self.tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
        with self._encoder.encoder(device=torch.device("cpu"), dtype=self.dtype, keep=False) as encoder:
            encoder.save_pretrained(target)
        settings = {"length": self.length, "dtype": str(self.dtype).removeprefix("torch.")}
        write_atomically(folder / SETTINGS, (json.dumps(settings, indent=1) + "\n").encode())

    @property
    def length(self) -> int:
        """Rows of every output: tokens, the end mark among them."""
        return self._length

    @property
    def width(self) -> int:
        """Numbers for each token."""
        return int(self.weights.config.d_model)

    @property
    def device(self) -> torch.device:
        """Where prompts are encoded and embeddings come out."""
        return self.place.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in: as requested, but bfloat16 where that is too narrow."""
        requested = self.place.dtype
        return requested if requested in DTYPES.values() else torch.bfloat16

    @property
    def loaded(self) -> bool:
        """Whether the encoder is in memory now."""
        return self._encoder.loaded

    def encode(self, prompts: list[str]) -> Float[Tensor, "batch words width"]:
        """Embeddings of the prompts, [prompts, length, width], on this part's device, without gradients.

        Prompts are cleaned as Wan cleans them. Each is encoded alone, without padding, so its embeddings do not
        depend on its batch; rows past its end are zero.

        Raises:
            ConfigError: an empty prompt, or one that is no valid Unicode.
            NonFiniteError: the encoder gave NaN or infinity.
        """
        return self([clean_prompt(prompt) for prompt in prompts])

    def encode_empty(self) -> Float[Tensor, "1 words width"]:
        """Embeddings of the empty prompt: the end mark alone, as in diffusers."""
        return self([""])

    @torch.no_grad()
    def forward(self, prompts: list[str]) -> Float[Tensor, "batch words width"]:
        """As `encode`, of prompts that are cleaned already; the empty one, too."""
        if self.place.dtype is not self.dtype:
            logger.warning(
                "UMT5 computes in bfloat16 or float32, not in %s; it stays in %s.", self.place.dtype, self.dtype
            )
        with self._turn:
            tokens = [self._tokens(prompt) for prompt in prompts]
            rows = self._rows(list(dict.fromkeys(tokens)))
        embeddings = torch.zeros(len(tokens), self.length, self.width, device=self.device, dtype=self.dtype)
        for row, one in zip(embeddings, tokens, strict=True):
            row[: len(one)] = rows[one]
        return embeddings

    def _tokens(self, cleaned: str) -> tuple[int, ...]:
        """Ids of a prompt, the end mark included, cut to the length."""
        with parsed_by_others(Path(str(self.tokenizer.name_or_path)), "a tokenizer that works"):
            whole = self.tokenizer(cleaned, truncation=False, verbose=False)["input_ids"]
            words = self.weights.config.vocab_size
            if not whole or not all(0 <= one < words for one in whole):
                raise ValueError(f"it gives ids outside of the encoder's {words} words, or none")
        if len(whole) <= self.length:
            return tuple(whole)
        cut = self.tokenizer(cleaned, truncation=True, max_length=self.length, return_offsets_mapping=True)
        lost = cleaned[max(end for _, end in cut["offset_mapping"]) :].strip()
        logger.warning(
            "A prompt has %d tokens and %d are seen; cut off: %r%s.",
            len(whole),
            self.length,
            lost[:_SHOWN],
            f" and {len(lost) - _SHOWN} characters more" if len(lost) > _SHOWN else "",
        )
        return tuple(cut["input_ids"])

    def _rows(self, prompts: list[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
        """Embeddings of different prompts, [tokens, width] each: from the cache, and what it lacks from the encoder."""
        rows = self._cached_rows(prompts)
        lacking = [tokens for tokens in prompts if tokens not in rows]
        if not lacking:
            return rows
        with self._encoder.encoder(device=self.device, dtype=self.dtype, keep=self.keep_on_device) as encoder:
            for tokens in lacking:
                with FastProducts():
                    output = encoder(input_ids=torch.tensor([tokens], device=self.device)).last_hidden_state[0]
                if not output.isfinite().all():
                    raise NonFiniteError(
                        f"The text encoder gave NaN or infinity for a prompt of {len(tokens)} tokens; its weights are "
                        "damaged; load them again."
                    )
                rows[tokens] = output
                if self.cache is not None:
                    self.cache.write(self._key(tokens), output)
        return rows

    def _cached_rows(self, prompts: list[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
        if self.cache is None:
            return {}
        found = {
            tokens: self.cache.read(self._key(tokens), shape=(len(tokens), self.width), dtype=self.dtype)
            for tokens in prompts
        }
        return {tokens: rows for tokens, rows in found.items() if rows is not None}

    def _key(self, tokens: tuple[int, ...]) -> str:
        if self.dtype not in self._fingerprints:
            self._fingerprints[self.dtype] = self.weights.fingerprint(self.dtype)
        return embedding_key(tokens, encoder=self._fingerprints[self.dtype], dtype=self.dtype)


def _read_settings(path: Path) -> tuple[int, torch.dtype]:
    """Length and dtype of a folder that ``save_pretrained`` wrote; Wan's for any other."""
    if not path.exists():
        return LENGTH, torch.bfloat16
    settings = read_json(path)
    length, dtype = settings.get("length"), settings.get("dtype")
    if set(settings) != {"length", "dtype"} or type(length) is not int or dtype not in tuple(DTYPES):
        raise CheckpointError(
            f"{path} holds {settings!r:.80}; it must have a whole number 'length' and a 'dtype' of {', '.join(DTYPES)}."
        )
    return length, DTYPES[dtype]
