"""XMP files beside a RAW file: ratings, keywords, settings that other programs keep there, carried to the DNG."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree

from exposure.files import whole

from .metadata import MOST_BYTES, XMP, Entry, Metadata
from .output import part_of
from .rawfile import RawFile
from .tiff import BYTE

ROOTS = ("{adobe:ns:meta/}xmpmeta", "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}RDF")
RAWPREPARE = re.compile(rb"""["'>]\s*rawprepare\s*["'<]""")  # as an attribute or, of older versions, an element's text
DECLARATION = re.compile(rb"^(?:\xef\xbb\xbf)?\s*(?:<\?xml\s[^>]*\?>\s*)?")
# XMP specification, part 1, section 7.3.2: how a packet inside a file begins and ends.
PACKET = b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n%s\n<?xpacket end="w"?>'


@dataclass(frozen=True)
class Sidecars:
    """file: the source, with IMG.xmp inside where that belongs there. copies: what is to be written, by path.

    warning: a sentence about those that cannot be used, empty where there are none.
    """

    file: RawFile
    copies: dict[Path, bytes] = field(default_factory=dict)
    warning: str = ""


def with_sidecars(file: RawFile, result: Path, *, new_levels: bool = False) -> Sidecars:
    """Each sidecar goes where the programs that write it look for it when they open the DNG `result`.

    new_levels: black and white are other ones there; what names the source's, or margins (darktable's rawprepare), is
    left out.

    IMG.xmp is Adobe's, who read a DNG's XMP inside it and nowhere else: it becomes the DNG's own, in place of what a
    camera wrote into its RAW file. If the source is a DNG, its own was edited by programs and stays; then IMG.xmp goes
    beside, for nothing is merged. IMG.ARW.xmp is that of darktable and digiKam, who look
    beside any file, under its whole name: it is copied there.
    """
    source, copies, problems = file.path, {}, []
    adobes, others = source.with_suffix(".xmp"), source.with_name(f"{source.name}.xmp")
    metadata = file.metadata or Metadata("<")
    for wanted, target in ((adobes, result.with_suffix(".xmp")), (others, result.with_name(f"{result.name}.xmp"))):
        path = next((path for path in (wanted, wanted.with_suffix(".XMP")) if path.is_file()), None)
        if path is None:
            continue
        try:
            content = _read(path)
            if (new_levels or not file.whole_sensor) and RAWPREPARE.search(content):
                raise ValueError("it holds darktable's levels and margins of a sensor, and the result has others")
        except (OSError, ValueError) as error:
            problems.append(f"{path.name} beside it is left out ({getattr(error, 'strerror', None) or error})")
            continue
        if wanted is adobes and (XMP not in metadata.description or source.suffix.lower() != ".dng"):
            packet = _packet(content)
            inside = {**metadata.description, XMP: Entry(BYTE, len(packet), packet)}
            file = replace(file, metadata=replace(metadata, description=inside))
        else:
            copies[target] = content
    return Sidecars(file, copies, "; ".join(problems))


def write_copies(sidecars: Sidecars) -> None:
    """Write the copies; one that is there stays, since it tells what was done to an earlier result."""
    for path, content in sidecars.copies.items():
        if not path.exists():
            with whole(path, part=part_of(path)) as part:
                part.write_bytes(content)


def _read(path: Path) -> bytes:
    """An XMP file. Raises ValueError, a reason, for what is none."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
    content = path.read_bytes()
    try:
        content.decode()
        root = ElementTree.fromstring(content).tag
    except UnicodeDecodeError as error:
        raise ValueError("it is not in UTF-8") from error
    except ElementTree.ParseError as error:
        raise ValueError(f"it is not XML: {error}") from error
    if root not in ROOTS or b"<!DOCTYPE" in content:
        raise ValueError("it is XML, but not XMP")
    return content


def _packet(content: bytes) -> bytes:
    """XMP as it lies in a TIFF file: without an XML declaration, in a packet."""
    body = DECLARATION.sub(b"", content, count=1).rstrip()
    return body if body.startswith(b"<?xpacket begin") else PACKET % body
