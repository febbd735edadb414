"""Fragmented mp4 in memory, of packets that are encoded already: for MediaSource in browsers, and for players.

An init segment comes first, then fragments, each of any number of frames; a viewer begins with the init segment and a
fragment that begins with a key frame. FFmpeg's muxer would hold the last frame of a fragment back until the next one
comes, which a live viewer would see as a stop after every block. Box layouts: ISO/IEC 14496-12 and 14496-15.
"""

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from arl2.errors import StreamError
from arl2.video.h264 import H264Encoder, nal_units

if TYPE_CHECKING:
    from av import Packet

_SPS, _PPS, _DELIMITER = 7, 8, 9  # kinds of units
_TICKS = 1000  # of the clock, a frame: players want a fine one
_UNITY = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)  # of pictures: as they are
_BT601_LIMITED = b"nclx" + struct.pack(">HHHB", 6, 6, 6, 0)
_NEEDS_OTHERS, _NEEDS_NONE = 0x01010000, 0x02000000  # flags of a sample: whether it can be decoded alone


class FragmentedMp4:
    """Makes the bytes of one video's fragments.

    Args:
        width, height, fps: of the video, as its encoder has them.
    """

    def __init__(self, *, width: int, height: int, fps: int) -> None:
        self._width, self._height, self._fps = width, height, fps
        self._parameters: tuple[bytes, bytes] | None = None
        self._made = 0

    @classmethod
    def of(cls, encoder: H264Encoder) -> "FragmentedMp4":
        """For the packets of this encoder."""
        return cls(width=encoder.width, height=encoder.height, fps=encoder.fps)

    @property
    def codec(self) -> str:
        """As browsers ask for it, such as ``avc1.64000c``.

        Raises:
            StreamError: no key frame has come yet.
        """
        return f"avc1.{self._known()[0][1:4].hex()}"

    @property
    def init_segment(self) -> bytes:
        """What stands before every fragment.

        Raises:
            StreamError: no key frame has come yet: it brings what stands here.
        """
        return _box(b"ftyp", b"iso5", struct.pack(">I", 512), b"iso5iso6mp41") + self._movie(*self._known())

    def fragment(self, packets: "Sequence[Packet]") -> bytes:
        """One fragment of these frames, in their order; it can be shown as soon as it is there.

        Raises:
            StreamError: no packets, or the first ones of a video are no key frame.
        """
        frames = [(bytes(packet), bool(packet.is_keyframe)) for packet in packets]
        first = packets[0].pts if packets else 0
        assert first is not None  # the encoder numbers its packets
        return self.fragment_of(frames, first=first)

    def fragment_of(self, frames: Sequence[tuple[bytes, bool]], *, first: int) -> bytes:
        """As ``fragment``, of the packets' bytes.

        Args:
            frames: Annex-B, and whether it is a key frame.
            first: number of the first one, which is its time.

        Raises:
            StreamError: as for ``fragment``.
        """
        if not frames:
            raise StreamError("A fragment needs a frame at least; got no packets.")
        samples, flags = [], []
        for data, key in frames:
            units = list(nal_units(data))
            kinds = {unit[0] & 31: unit for unit in units}
            if self._parameters is None and _SPS in kinds and _PPS in kinds:
                self._parameters = kinds[_SPS], kinds[_PPS]
            kept = [unit for unit in units if unit[0] & 31 not in (_SPS, _PPS, _DELIMITER)]
            samples.append(b"".join(struct.pack(">I", len(unit)) + unit for unit in kept))
            flags.append(_NEEDS_NONE if key else _NEEDS_OTHERS)
        self._known()
        self._made += 1
        header = _box(b"mfhd", _version(0), struct.pack(">I", self._made))
        moof_size = len(_moof(header, first * _TICKS, samples, flags, 0))
        return _moof(header, first * _TICKS, samples, flags, moof_size + 8) + _box(b"mdat", *samples)

    def _known(self) -> tuple[bytes, bytes]:
        if self._parameters is None:
            raise StreamError("No key frame has come yet, which says how the video is decoded; encode one first.")
        return self._parameters

    def _movie(self, sps: bytes, pps: bytes) -> bytes:
        scale = self._fps * _TICKS
        size = struct.pack(">HH", self._width, self._height)
        avcc = (b"\x01", sps[1:4], b"\xff\xe1", _counted(sps), b"\x01", _counted(pps))
        extended = sps[1] in (100, 110, 122, 144)  # profiles whose record says depth and colour format, too
        record = _box(b"avcC", *avcc, b"\xfd\xf8\xf8\x00" if extended else b"")
        entry = _box(
            *(b"avc1", bytes(6), struct.pack(">H", 1), bytes(16), size),
            struct.pack(">IIIH32sHh", 0x480000, 0x480000, 0, 1, b"", 24, -1),
            *(record, _box(b"colr", _BT601_LIMITED)),
        )
        nothing = (_box(name, _version(0), bytes(4)) for name in (b"stts", b"stsc", b"stco"))
        sizes = _box(b"stsz", _version(0), bytes(8))
        samples = _box(b"stbl", _box(b"stsd", _version(0), struct.pack(">I", 1), entry), *nothing, sizes)
        here = _box(b"dinf", _box(b"dref", _version(0), struct.pack(">I", 1), _box(b"url ", _version(0, 1))))
        media = _box(
            b"mdia",
            _box(b"mdhd", _version(0), struct.pack(">IIIIHH", 0, 0, scale, 0, 0x55C4, 0)),
            _box(b"hdlr", _version(0), bytes(4), b"vide", bytes(12), b"video\0"),
            _box(b"minf", _box(b"vmhd", _version(0, 1), bytes(8)), here, samples),
        )
        track = _box(
            *(b"tkhd", _version(0, 3), struct.pack(">IIIII", 0, 0, 1, 0, 0), bytes(16), _UNITY),
            struct.pack(">II", self._width << 16, self._height << 16),
        )
        movie = _box(
            *(b"mvhd", _version(0), struct.pack(">IIII", 0, 0, scale, 0), struct.pack(">IH", 0x10000, 0x100)),
            *(bytes(10), _UNITY, bytes(24), struct.pack(">I", 2)),
        )
        fragments = _box(b"mvex", _box(b"trex", _version(0), struct.pack(">IIIII", 1, 1, _TICKS, 0, 0)))
        return _box(b"moov", movie, _box(b"trak", track, media), fragments)


def _moof(header: bytes, begin: int, samples: Sequence[bytes], flags: Sequence[int], data_offset: int) -> bytes:
    track = _box(b"tfhd", _version(0, 0x020000), struct.pack(">I", 1))  # offsets count from this box on
    time = _box(b"tfdt", _version(1), struct.pack(">Q", begin))
    entries = b"".join(struct.pack(">III", _TICKS, len(one), flag) for one, flag in zip(samples, flags, strict=True))
    # Data offset; and of each sample duration, size and flags.
    run = _box(b"trun", _version(0, 0x000701), struct.pack(">Ii", len(samples), data_offset), entries)
    return _box(b"moof", header, _box(b"traf", track, time, run))


def _box(kind: bytes, *parts: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, parts)), kind) + b"".join(parts)


def _version(version: int, flags: int = 0) -> bytes:
    return struct.pack(">I", version << 24 | flags)


def _counted(unit: bytes) -> bytes:
    return struct.pack(">H", len(unit)) + unit
