"""Tags of a TIFF-like RAW file, by tifffile's names: the mosaic's own directory first, then whatever else is there."""

import itertools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from .tiff import RATIONAL, SRATIONAL

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its remarks on broken tags are not for users
IFDS_READ = 16  # of a TIFF; corrupt ones chain in circles
END_OF_DATA = "end of data"
OF_THE_MOSAIC = {"PhotometricInterpretation", "SampleFormat", "ActiveArea", "DefaultCropOrigin", "DefaultCropSize"} | {
    *("BlackLevelRepeatDim", "BlackLevel", "BlackLevelDeltaH", "BlackLevelDeltaV"),
}

Tags = dict[str, tuple[int, Any]]
"""(TIFF field type, value) by name."""


def read_tags(path: Path, raw_shape: tuple[int, ...]) -> Tags:
    """Tags by name of a TIFF-like file: those of the IFD that holds the mosaic win; empty for other containers.

    END_OF_DATA is added: one past the last byte of the mosaic's strips or tiles.
    """
    found: Tags = {}
    try:
        with tifffile.TiffFile(path) as tif:
            pages = list(_ifds(tif))
            main = next((page for page in pages if page.tags.get(262) and page.tags[262].value == 32803), None)
            main = main or next((page for page in pages if page.shape[:2] == raw_shape), None)
            for page in (main, *pages):
                for tag in page.tags if page is not None else ():
                    found.setdefault(tag.name, (int(tag.dtype), tag.value))
            if main is None:
                found.pop("PhotometricInterpretation", None)  # a preview's
            else:
                ends = (start + count for start, count in zip(main.dataoffsets, main.databytecounts, strict=False))
                found[END_OF_DATA] = (0, max(ends, default=0))
                for name in OF_THE_MOSAIC - {tag.name for tag in main.tags}:  # a preview's, or a depth map's
                    found.pop(name, None)
    except Exception:  # tifffile raises many kinds on foreign or broken files; LibRaw has already read the pixels
        return {}
    return found


def _ifds(tif: tifffile.TiffFile) -> Iterator[Any]:
    for page in itertools.islice(tif.pages, IFDS_READ):
        yield page
        yield from itertools.islice(getattr(page, "pages", None) or (), IFDS_READ)


def text_of(tags: Tags, name: str) -> str:
    """A tag as text, whatever type it was written with; empty where it is missing."""
    _, value = tags.get(name, (0, ""))
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text.partition("\0")[0].strip()


def numbers(tags: Mapping[str, tuple[int, Any]], name: str) -> tuple[float, ...]:
    """A tag's numbers, rational ones divided; empty where it is missing. Raises ValueError where they are none."""
    kind, value = tags.get(name, (0, ()))
    try:
        found = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"its {name} holds no numbers") from error
    if kind in (RATIONAL, SRATIONAL):
        with np.errstate(all="ignore"):
            found = found[0::2] / found[1::2]
    if not np.isfinite(found).all():
        raise ValueError(f"its {name} holds numbers that are not finite")
    return tuple(found.tolist())


def known_numbers(tags: Tags, name: str) -> tuple[float, ...]:
    """A tag's numbers; empty where it is missing or holds none."""
    try:
        return numbers(tags, name)
    except ValueError:
        return ()


def active_corner(tags: Tags) -> tuple[int, int]:
    """Top and left of a DNG's ActiveArea. LibRaw begins later where a side is odd, so that the CFA's phase is kept."""
    top, left = (int(side) for side in (*known_numbers(tags, "ActiveArea"), 0, 0)[:2])
    return top, left
