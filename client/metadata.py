"""What a camera wrote about an exposure, carried byte for byte: EXIF, GPS, maker note, description, IPTC, XMP.

TIFF 6.0 and EXIF 2.32 directories; the containers of Fuji and Panasonic (JPEG inside) and Canon CR3 (ISO 14496-12
boxes). Libraries turn values into their own types; here types, counts and bytes stay as they were.
"""

import contextlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import tifffile

from .tiff import BYTE, LONG, SIZES, UNDEFINED

SUB_IFDS, EXIF_IFD, GPS_IFD, INTEROPERABILITY_IFD, MAKER_NOTE = 330, 34665, 34853, 40965, 37500
DNG_VERSION, DNG_PRIVATE_DATA, MAKER_NOTE_SAFETY = 50706, 50740, 50741
XMP, PANASONICS_JPEG = 700, 0x2E
OF_A_JPEG = {37121, 37122, 40962, 40963}  # its components, bits and sides
PLACEHOLDERS = {EXIF_IFD: EXIF_IFD - 1, GPS_IFD: GPS_IFD - 1}  # tifffile writes no pointers; these sort as they do
MOST_ENTRIES, MOST_BYTES = 1000, 1 << 24  # of a directory, of a value; more is damage
TIFF_HEADER = 8  # bytes
TIFF_MAGICS = (42, 0x4F52, 0x5352, 0x55)  # TIFF, Olympus (two), Panasonic
# Descriptive tags of the first directory: TIFF, XMP, Windows, IPTC.
DESCRIPTIVE = frozenset({270, 271, 272, 306, 315, 316, XMP, 18246, 18249, 33432, 33723, *range(40091, 40096)})
# What older cameras (TIFF/EP) write there too; its place in a DNG is EXIF.
TIFF_EP = frozenset({33434, 33437, 34850, 34855, 36867, 36868, *range(37377, 37397)})
CR3_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # the uuid of the box
# Maker notes whose offsets count from themselves: they may be moved.
SELF_CONTAINED = (b"Nikon\0\2", b"OLYMPUS\0", b"OM SYSTEM\0", b"FUJIFILM", b"Apple iOS\0", b"PENTAX \0")


@dataclass(frozen=True)
class Entry:
    """One field. kind: TIFF field type; data: its values in the file's byte order; offset: where they lay."""

    kind: int
    count: int
    data: bytes
    offset: int = 0


Directory = Mapping[int, Entry]


@dataclass(frozen=True)
class Metadata:
    """Directories by tag code. order: "<" or ">"; description: the descriptive tags of the first directory.

    note_is_safe: a DNG says that its maker note may be moved (MakerNoteSafety). has_private: it has a DNGPrivateData.
    """

    order: str
    description: Directory = field(default_factory=dict)
    exif: Directory = field(default_factory=dict)
    gps: Directory = field(default_factory=dict)
    note_is_safe: bool = False
    has_private: bool = False

    def text(self, code: int) -> str:
        """A descriptive ASCII tag, empty where absent."""
        entry = self.description.get(code)
        return entry.data.split(b"\0")[0].decode(errors="replace").strip() if entry else ""

    @property
    def movable_exif(self) -> dict[int, Entry]:
        """The EXIF fields that mean the same anywhere in a file."""
        exif = {code: entry for code, entry in self.exif.items() if code != INTEROPERABILITY_IFD}
        if self.private_data:
            del exif[MAKER_NOTE]
        return exif

    @property
    def directories(self) -> dict[int, Directory]:
        """EXIF and GPS by the tags that point to them, where there is anything in them."""
        both = {EXIF_IFD: self.movable_exif, GPS_IFD: self.gps}
        return {code: directory for code, directory in both.items() if directory}

    @property
    def note_moves(self) -> bool:
        """Whether the maker note can be read wherever it lies."""
        return self.note_is_safe or self.exif[MAKER_NOTE].data.startswith(SELF_CONTAINED)

    @property
    def private_data(self) -> bytes:
        """The maker note as DNGPrivateData, with its old offset so that readers find their way.

        Empty where the note moves, and where others' data are in that place.
        Adobe's layout: "Adobe" 0 "MakN", length, byte order, offset (DNG 1.4, DNGPrivateData).
        """
        note = self.exif.get(MAKER_NOTE)
        if note is None or self.note_moves or self.has_private:
            return b""
        order = b"II" if self.order == "<" else b"MM"
        data = order + struct.pack(">I", note.offset) + note.data
        return b"Adobe\0MakN" + struct.pack(">I", len(data)) + data


def read_metadata(path: Path) -> Metadata | None:
    """What a RAW file tells, or None where its container is foreign or damaged."""
    with contextlib.suppress(OSError, struct.error, ValueError), path.open("rb") as file:
        start = file.read(16)
        if start[4:12] == b"ftypcrx ":
            return _canon_cr3(file)
        told = _tiff(file, _fuji_base(file) if start.startswith(b"FUJIFILM") else 0)
        return _with_panasonics_jpeg(file, told) if told and start.startswith(b"IIU\0") else told
    return None


def append_directories(path: Path, metadata: Metadata) -> None:
    """Put the EXIF and GPS directories behind a TIFF file, and turn the PLACEHOLDERS of its first one into pointers."""
    with tifffile.TiffFile(path) as tif:
        placeholders = {
            code: tag.offset for code in PLACEHOLDERS if (tag := tif.pages.first.tags.get(PLACEHOLDERS[code]))
        }
        below = tif.pages.first.tags.get(SUB_IFDS)
    with path.open("r+b") as file:
        if below is not None:  # tifffile writes the type IFD, where DNG readers expect LONG
            file.seek(below.offset + 2)
            file.write(struct.pack(metadata.order + "H", LONG))
        for code, directory in metadata.directories.items():
            place = file.seek(0, 2)
            place += file.write(bytes(place % 2))  # directories begin on a word
            file.write(_serialised(directory, metadata.order, place))
            file.seek(placeholders[code])
            file.write(struct.pack(metadata.order + "HHII", code, LONG, 1, place))


def exif_block(metadata: Metadata) -> bytes:
    """Description, EXIF and GPS as JPEG and PNG hold them: a TIFF file without a picture (EXIF 2.32, 4.5.2)."""
    first = {**metadata.description, **{code: Entry(LONG, 1, bytes(4)) for code in metadata.directories}}
    place = TIFF_HEADER + len(_serialised(first, metadata.order, TIFF_HEADER))
    behind = b""
    for code, directory in metadata.directories.items():
        first[code] = Entry(LONG, 1, struct.pack(metadata.order + "I", place + len(behind)))
        behind += _serialised(directory, metadata.order, place + len(behind))
    header = (b"II" if metadata.order == "<" else b"MM") + struct.pack(metadata.order + "HI", 42, TIFF_HEADER)
    return b"Exif\0\0" + header + _serialised(first, metadata.order, TIFF_HEADER) + behind


def _serialised(directory: Directory, order: str, place: int) -> bytes:
    """A directory and its values, as they lie at `place`."""
    entries, values = b"", b""
    behind = place + 2 + 12 * len(directory) + 4
    for code, entry in sorted(directory.items()):
        inline = entry.data.ljust(4, b"\0")
        if len(entry.data) > 4:
            inline = struct.pack(order + "I", behind + len(values))
            values += entry.data + bytes(len(entry.data) % 2)
        entries += struct.pack(order + "HHI", code, entry.kind, entry.count) + inline
    return struct.pack(order + "H", len(directory)) + entries + bytes(4) + values


def _tiff(file: BinaryIO, base: int) -> Metadata | None:
    order, first = _header(file, base)
    if not order:
        return None
    top = _directory(file, base, first, order)
    description = {code: entry for code, entry in top.items() if code in DESCRIPTIVE}
    exif, gps = ({} if code not in top else _pointed(file, base, top[code], order) for code in (EXIF_IFD, GPS_IFD))
    camera = {code: entry for code, entry in top.items() if code in TIFF_EP}
    dng = top if DNG_VERSION in top else {}  # elsewhere these codes mean other things: Sony's SR2Private is one
    safe = MAKER_NOTE_SAFETY in dng and any(dng[MAKER_NOTE_SAFETY].data)
    return Metadata(order, description, camera | exif, gps, safe, DNG_PRIVATE_DATA in dng)


def _with_panasonics_jpeg(file: BinaryIO, told: Metadata) -> Metadata:
    """What only the JPEG inside an RW2 tells, such as lens and maker note, beneath what the RW2 itself tells."""
    with contextlib.suppress(KeyError, struct.error, ValueError):  # none, or damaged: the rest is told nevertheless
        jpeg = _directory(file, 0, _header(file, 0)[1], told.order)[PANASONICS_JPEG]
        inner = _tiff(file, _exif_base(file, jpeg.offset))
        if inner is not None and inner.order == told.order:  # as cameras write them
            kept = {code: entry for code, entry in inner.exif.items() if code not in OF_A_JPEG}
            description, exif = {**inner.description, **told.description}, {**kept, **told.exif}
            return replace(told, description=description, exif=exif, gps={**inner.gps, **told.gps})
    return told


def _header(file: BinaryIO, base: int) -> tuple[str, int]:
    """Byte order and offset of the first directory; "" where no TIFF begins at `base`."""
    file.seek(base)
    start = file.read(8)
    order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
    if not order or struct.unpack(order + "H", start[2:4])[0] not in TIFF_MAGICS:
        return "", 0
    return order, struct.unpack(order + "I", start[4:8])[0]


def _pointed(file: BinaryIO, base: int, pointer: Entry, order: str) -> dict[int, Entry]:
    return _directory(file, base, struct.unpack(order + "I", pointer.data[:4])[0], order)


def _directory(file: BinaryIO, base: int, offset: int, order: str) -> dict[int, Entry]:
    file.seek(base + offset)
    (count,) = struct.unpack(order + "H", file.read(2))
    if count > MOST_ENTRIES:
        return {}
    table = file.read(12 * count)
    found = {}
    for i in range(len(table) // 12):
        code, kind, number, inline = struct.unpack(order + "HHI4s", table[12 * i : 12 * i + 12])
        size = SIZES.get(kind, 0) * number
        if not 0 < size <= MOST_BYTES:
            continue
        data, place = inline[:size], 0
        if size > 4:
            (place,) = struct.unpack(order + "I", inline)
            file.seek(base + place)
            data = file.read(size)
        if len(data) == size:  # else it is cut off
            found[code] = Entry(kind, number, data, place)
    return found


def _fuji_base(file: BinaryIO) -> int:
    """Where the TIFF part begins in the JPEG of a RAF file."""
    file.seek(84)
    (jpeg,) = struct.unpack(">I", file.read(4))
    return _exif_base(file, jpeg)


def _exif_base(file: BinaryIO, jpeg: int) -> int:
    """Where the TIFF part begins in the JPEG that begins at `jpeg`."""
    file.seek(jpeg)
    start = file.read(4096)
    place = start.find(b"Exif\0\0")
    if place < 0:
        raise ValueError("no EXIF in the JPEG")
    return jpeg + place + 6


def _canon_cr3(file: BinaryIO) -> Metadata | None:
    """Canon keeps first directory, EXIF, maker note and GPS in boxes of their own, CMT1 to CMT4, and XMP in another."""
    boxes = _canon_boxes(file)
    parts: dict[bytes, dict[int, Entry]] = {}
    order = ""
    for name in (b"CMT1", b"CMT2", b"CMT4"):
        if name in boxes:
            order, first = _header(file, boxes[name][0])
            parts[name] = _directory(file, boxes[name][0], first, order) if order else {}
    description = {code: entry for code, entry in parts.get(b"CMT1", {}).items() if code in DESCRIPTIVE}
    exif = parts.get(b"CMT2", {})
    if CR3_XMP in boxes:
        description |= _boxed(file, *boxes[CR3_XMP], XMP, BYTE)
    if b"CMT3" in boxes and _header(file, boxes[b"CMT3"][0])[0] == order:
        exif |= _boxed(file, *boxes[b"CMT3"], MAKER_NOTE, UNDEFINED, TIFF_HEADER)  # its offsets count from the header
    return Metadata(order, description, exif, parts.get(b"CMT4", {})) if order else None


def _canon_boxes(file: BinaryIO) -> dict[bytes, tuple[int, int]]:
    """Begin and end of the content: of the boxes in moov / uuid by name, of those outside by their uuid."""
    found: dict[bytes, tuple[int, int]] = {}
    for kind, start, end in _boxes(file, 0, file.seek(0, 2)):
        if kind == b"uuid":
            file.seek(start)
            found.setdefault(file.read(16), (start + 16, end))
        for inner, inner_start, inner_end in _boxes(file, start, end) if kind == b"moov" else ():
            for name, first, last in _boxes(file, inner_start + 16, inner_end) if inner == b"uuid" else ():
                found.setdefault(name, (first, last))
    return found


def _boxed(file: BinaryIO, start: int, end: int, code: int, kind: int, header: int = 0) -> dict[int, Entry]:
    """The content of a box behind its header as a field; none where it is empty or too large."""
    if not header < end - start <= MOST_BYTES:
        return {}
    file.seek(start + header)
    data = file.read(end - start - header)
    return {code: Entry(kind, len(data), data, header)}


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of the content of each box in a range."""
    while start + 8 <= end:
        file.seek(start)
        header = file.read(16)
        size, kind = struct.unpack(">I4s", header[:8])
        content = start + 8
        if size == 1:
            (size,) = struct.unpack(">Q", header[8:16])
            content += 8
        if size < content - start:
            return
        yield kind, content, min(start + size, end)
        start += size
