"""The tokenizer inside ComfyUI's UMT5 files: a SentencePiece model, kept as a tensor of bytes beside the weights.

The format is Protocol Buffers' (``sentencepiece_model.proto``); of it only pieces, the number of the unknown one and
the table of characters are read. The tokenizer is built of them as transformers' converter for T5 does.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from arl2.errors import CheckpointError
from arl2.files.regular import first_line

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of the model
_UNKNOWN, _CHARACTERS = 40, 2  # of the trainer's and of the normalizer's settings
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # kinds of fields
_MARKS = ("<pad>", "</s>", "<unk>")
_SPACE = "▁"


class _Field(NamedTuple):
    number: int
    value: int | bytes


def tokenizer_of_pieces(content: bytes, where: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a SentencePiece model; it ends every text with the end mark.

    Args:
        content: of a ``spiece.model``.
        where: what errors call the file.

    Raises:
        CheckpointError: not such a model, or not UMT5's.
    """
    try:
        pieces, unknown, characters = _read(content)
        end = [piece for piece, _ in pieces].index(_MARKS[1])
        tokenizer = Tokenizer(Unigram(pieces, unk_id=unknown))
        tokenizer.normalizer = normalizers.Sequence(
            [
                *([normalizers.Precompiled(characters)] if characters else []),
                normalizers.Strip(left=False, right=True),
                normalizers.Replace(Regex(" {2,}"), _SPACE),
            ]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
        tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["$A", _MARKS[1]], special_tokens=[(_MARKS[1], end)]
        )
        pad, eos, unk = _MARKS
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token=eos, unk_token=unk)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of a table that it cannot read the tokenizers library raises even panics
        raise CheckpointError(
            f"{where} holds no readable tokenizer in spiece_model ({first_line(error)}); download it again, or copy "
            "the folder google/umt5-xxl of Wan 2.1 beside it."
        ) from error


def _read(content: bytes) -> tuple[list[tuple[str, float]], int, bytes]:
    """Pieces with their scores, the number of the unknown one, and the table of characters."""
    pieces, unknown, characters = [], 0, b""
    for field in _fields(content):
        if not isinstance(field.value, bytes):
            continue
        inner = list(_fields(field.value)) if field.number in (_PIECES, _TRAINER, _NORMALIZER) else []
        if field.number == _PIECES:
            values = {one.number: one.value for one in inner}
            text, score = values[1], values.get(2, bytes(4))
            assert isinstance(text, bytes)
            assert isinstance(score, bytes)
            pieces.append((text.decode(), *struct.unpack("<f", score)))
        for one in inner:
            if (field.number, one.number) == (_TRAINER, _UNKNOWN) and isinstance(one.value, int):
                unknown = one.value
            elif (field.number, one.number) == (_NORMALIZER, _CHARACTERS) and isinstance(one.value, bytes):
                characters = one.value
    return pieces, unknown, characters


def _fields(data: bytes) -> Iterator[_Field]:
    """The fields of a message; raises ``ValueError`` where it is cut."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield _Field(number, value)
            continue
        if kind == _BYTES:
            length, at = _varint(data, at)
        elif kind in (_EIGHT, _FOUR):
            length = 8 if kind == _EIGHT else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + length > len(data):
            raise ValueError("it is cut")
        yield _Field(number, data[at : at + length])
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it is cut")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
