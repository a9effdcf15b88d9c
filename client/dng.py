"""Write a CFA DNG: a mosaic with the levels, phase and colour of the file it came from (Adobe DNG 1.4)."""

import io
import itertools
import re
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

import exposure
from exposure.srgb import SRGB_TO_XYZ

from .metadata import MAKER_NOTE, PLACEHOLDERS, Entry, Metadata, append_directories
from .rawfile import RawFile
from .tags import Tags, text_of
from .tiff import ASCII, BYTE, DOUBLE, FLOAT, LONG, RATIONAL, SHORT, SRATIONAL, UNDEFINED

NUMERIC = (BYTE, SHORT, LONG, RATIONAL, SRATIONAL, FLOAT, DOUBLE)
D65 = 21  # EXIF LightSource

# What a DNG says about colour and rendering, carried over as it is; codes and names are tifffile's.
COLOUR_TAGS = (
    *("ColorMatrix1", "ColorMatrix2", "CameraCalibration1", "CameraCalibration2", "AnalogBalance", "AsShotNeutral"),
    *("AsShotWhiteXY", "BaselineExposure", "CalibrationIlluminant1", "CalibrationIlluminant2", "ForwardMatrix1"),
    *("ForwardMatrix2", "ReductionMatrix1", "ReductionMatrix2", "CameraCalibrationSignature"),
    *("ProfileCalibrationSignature", "AsShotProfileName", "ProfileName", "ProfileCopyright", "ProfileEmbedPolicy"),
    *("ProfileHueSatMapDims", "ProfileHueSatMapData1", "ProfileHueSatMapData2", "ProfileHueSatMapEncoding"),
    *("ProfileToneCurve", "ProfileLookTableDims", "ProfileLookTableData", "ProfileLookTableEncoding"),
    *("BaselineExposureOffset", "DefaultBlackRender", "BaselineSharpness", "LinearResponseLimit", "ShadowScale"),
    *("BaselineNoise", "CameraSerialNumber", "LensInfo", "LocalizedCameraModel", "TimeCodes", "FrameRate", "TStop"),
    *("ReelName", "CameraLabel", "ColorimetricReference", "AsShotICCProfile", "AsShotPreProfileMatrix"),
    *("CurrentICCProfile", "CurrentPreProfileMatrix"),
)
# Of DNG 1.6: a third illuminant, and what illuminants of the kind "other" are; 52535 is IlluminantData3.
COLOUR_TAGS_1_6 = (
    *("CalibrationIlluminant3", "CameraCalibration3", "ColorMatrix3", "ForwardMatrix3", "ReductionMatrix3"),
    *("ProfileHueSatMapData3", "IlluminantData1", "IlluminantData2", "52535"),
)
SENSOR_TAGS = (
    *("BayerGreenSplit", "AntiAliasStrength", "ChromaBlurRadius", "BestQualityScale", "DefaultScale"),
    "DefaultUserCrop",
)
ACTIVE_AREA_TAGS = ("OpcodeList2", "OpcodeList3")  # they count from its corner
WHOLE_SENSOR_TAGS = ("OpcodeList1",)  # it counts from the sensor's corner
PRIVATE_TAGS = ("DNGPrivateData", "MakerNoteSafety")  # of a DNG only: elsewhere their codes mean other things
DEFAULT_SCALE = 50718
JPEG, SRGB = 7, 2  # Compression, PreviewColorSpace
TILE = 512
SOFTWARE = f"exposure {exposure.__version__}"

Tag = tuple[int, int, int, Any, bool]


def write_dng(
    path: Path,
    file: RawFile,
    mosaic: NDArray[np.uint16],
    noise_profile: tuple[float, float] | None = None,
    *,
    noise_reduction: float | None = None,
    preview: NDArray[np.uint8] | None = None,
    made_with: str = "",
    compressed: bool = True,
) -> None:
    """Write `mosaic` ([H, W] DN), described as `file` is, in its byte order.

    noise_profile: (s, o) with variance = s * signal + o, signal in [0, 1]; the file's own is never carried over,
    since it describes another exposure. noise_reduction: what the NoiseReductionApplied tag says, 0 to 1.
    preview: [h, w, 3] sRGB; the first directory is then that of the picture, as other programs expect, and the mosaic
    is below it. made_with: stands behind the program's name in Software, which every reader shows; ImageHistory, made
    for it, is no standard tag of a DNG (`exiftool -validate`). compressed: losslessly; else the mosaic is
    one plain strip, for a file that is read once.
    """
    told, metadata = software_told(made_with), with_exposure(file, file.metadata or Metadata("<"))
    first = _once([*_camera_tags(file), *_colour_tags(file), *_description_tags(file, metadata)])
    sensor = _sensor_tags(file)
    if noise_profile:
        sensor.append(_tag(51041, DOUBLE, noise_profile))  # NoiseProfile
    if noise_reduction is not None:
        sensor.append(_tag(50935, RATIONAL, _rationals([noise_reduction])))  # NoiseReductionApplied
    order: Literal["<", ">"] = ">" if metadata.order == ">" else "<"
    with tifffile.TiffWriter(path, byteorder=order) as tif:
        if preview is None:
            _write_mosaic(tif, mosaic, [*sensor, *first], told, compressed)
        else:
            _write_preview(tif, preview, first, told)
            _write_mosaic(tif, mosaic, sensor, "", compressed)
    append_directories(path, metadata)


def software_told(made_with: str) -> str:
    """The tag Software: the program, and what makes the same result again."""
    return f"{SOFTWARE} ({made_with})" if made_with else SOFTWARE


def is_result(tags: Tags) -> bool:
    """Whether `software_told` says of a file what made it, in whatever version; our samples do not."""
    return re.match(r"exposure \S+ \(ratio", text_of(tags, "Software")) is not None


def _write_preview(tif: tifffile.TiffWriter, preview: NDArray[np.uint8], tags: list[Tag], software: str) -> None:
    """The first directory, a JPEG; the next one written is below it."""
    with io.BytesIO() as encoded:
        Image.fromarray(preview).save(encoded, "JPEG", quality=85, subsampling=0)
        picture = encoded.getvalue()
    tif.write(
        iter([picture]),
        shape=preview.shape,
        dtype=np.uint8,
        photometric="ycbcr",
        subsampling=(1, 1),
        compression=JPEG,
        rowsperstrip=preview.shape[0],
        subfiletype=1,
        subifds=1,
        metadata=None,
        software=software,
        extratags=[*tags, _tag(50970, LONG, SRGB)],  # PreviewColorSpace
    )


def _write_mosaic(
    tif: tifffile.TiffWriter, mosaic: NDArray[np.uint16], tags: list[Tag], software: str, compressed: bool
) -> None:
    """The directory of the CFA picture."""
    layout: dict[str, Any]
    height, width = mosaic.shape
    if compressed:
        # LibRaw misreads tiles that are wider than the picture, and those of two components that are half as wide.
        columns = TILE // 2 if width == 2 * TILE else TILE
        tile = min(TILE, height // 16 * 16), min(columns, width // 16 * 16)
        parts = _tiles(mosaic, tile)
        layout = {"tile": tile, "compression": JPEG, "bitspersample": 16}  # tifffile takes JPEG for 12 or 8 bits
    else:
        parts, layout = iter([mosaic.astype(f"{tif.tiff.byteorder}u2").tobytes()]), {"rowsperstrip": height}
    tif.write(
        parts,
        shape=mosaic.shape,
        dtype=np.uint16,
        photometric="cfa",
        subfiletype=0,
        metadata=None,
        software=software,
        extratags=tags,
        **layout,
    )


def _tiles(mosaic: NDArray[np.uint16], size: tuple[int, int]) -> Iterator[bytes]:
    """Each tile, row by row, compressed."""
    height, width = size
    padded = np.pad(mosaic, [(0, -side % length) for side, length in zip(mosaic.shape, size, strict=True)], mode="wrap")
    corners = itertools.product(range(0, padded.shape[0], height), range(0, padded.shape[1], width))
    with ThreadPoolExecutor() as threads:
        yield from threads.map(lambda at: _lossless(padded[at[0] : at[0] + height, at[1] : at[1] + width]), corners)


def _lossless(tile: NDArray[np.uint16]) -> bytes:
    """Lossless JPEG (ITU T.81, process 14); two columns of the CFA are its two components."""
    height, width = tile.shape
    return bytes(
        imagecodecs.jpeg8_encode(
            np.ascontiguousarray(tile).reshape(height, width // 2, 2),
            lossless=True,
            predictor=1,
            bitspersample=16,
            colorspace="unknown",
            outcolorspace="unknown",
        )
    )


def _description_tags(file: RawFile, metadata: Metadata) -> list[Tag]:
    """Descriptive tags, pointers to EXIF and GPS (set when these are there), the maker note, the source's name."""
    tags = [packed(code, entry) for code, entry in metadata.description.items() if code not in (271, 272, 305)]
    tags += pointers(metadata)
    if "DNGVersion" in file.tags:
        tags += _carried(file, PRIVATE_TAGS)
    if metadata.private_data:
        tags.append((50740, BYTE, len(metadata.private_data), metadata.private_data, True))  # DNGPrivateData
    elif MAKER_NOTE in metadata.exif:
        tags.append(_tag(50741, SHORT, int(metadata.note_moves)))  # MakerNoteSafety
    tags.append(_utf8(50827, text_of(file.tags, "OriginalRawFileName") or file.path.name))
    return tags


def pointers(metadata: Metadata) -> list[Tag]:
    """Places for the offsets of EXIF and GPS, where there are any: `append_directories` sets them."""
    return [_tag(PLACEHOLDERS[code], LONG, 0) for code in metadata.directories]


def _carried(file: RawFile, names: Sequence[str]) -> list[Tag]:
    """Tags as they were, but for those that are empty or cut off, or whose type is none that a DNG may have."""
    carried = []
    for name in names:
        kind, value = file.tags.get(name, (0, None))
        code = int(name) if name.isdecimal() else tifffile.TIFF.TAGS[name]
        if isinstance(value, bytes) and kind in (BYTE, UNDEFINED):
            carried.append((code, kind, len(value), value, True))
        elif isinstance(value, str) and kind == ASCII:
            carried.append(_text(code, value))
        elif kind in NUMERIC and not isinstance(value, str | bytes) and np.size(value):
            if kind in (RATIONAL, SRATIONAL) and np.size(value) % 2:  # a numerator without its denominator
                continue
            carried.append(_tag(code, kind, value))
    return carried


def with_exposure(file: RawFile, metadata: Metadata) -> Metadata:
    """The metadata with ISO, exposure time and aperture as LibRaw knows them, where it does not tell them itself."""
    known: dict[int, Entry] = {}
    if 0 < file.iso <= 65535:
        known[34855] = Entry(SHORT, 1, struct.pack(metadata.order + "H", round(file.iso)))  # ISOSpeedRatings
    for code, value in ((33434, file.exposure_s), (33437, file.aperture)):  # ExposureTime, FNumber
        if value > 0:
            known[code] = Entry(RATIONAL, 1, struct.pack(metadata.order + "2I", *_rationals([value])))
    return replace(metadata, exif=known | dict(metadata.exif))


def _once(tags: Sequence[Tag]) -> list[Tag]:
    """The first of each code."""
    found: dict[int, Tag] = {}
    for tag in tags:
        found.setdefault(tag[0], tag)
    return list(found.values())


def _sensor_tags(file: RawFile) -> list[Tag]:
    sensor = file.sensor
    tags = [
        _tag(33421, SHORT, (2, 2)),  # CFARepeatPatternDim
        _tag(33422, BYTE, [colour for row in sensor.cfa for colour in row]),  # CFAPattern
        _tag(50710, BYTE, (0, 1, 2)),  # CFAPlaneColor
        _tag(50711, SHORT, (1,)),  # CFALayout: rectangular
        _tag(50713, SHORT, (2, 2)),  # BlackLevelRepeatDim
        _tag(50714, RATIONAL, _rationals(sensor.black)),  # BlackLevel
        _tag(50717, LONG, (round(sensor.white),)),  # WhiteLevel
    ]
    if file.crop:
        whole = all(float(side).is_integer() for side in file.crop)
        kind, sides = (LONG, tuple(map(int, file.crop))) if whole else (RATIONAL, _rationals(file.crop))
        half = len(sides) // 2
        tags += [_tag(50719, kind, sides[:half]), _tag(50720, kind, sides[half:])]  # DefaultCropOrigin, -Size
    if "DNGVersion" in file.tags:
        tags += _carried(file, SENSOR_TAGS)
        tags += _carried(file, ACTIVE_AREA_TAGS) if file.at_active_area else []
        tags += _carried(file, WHOLE_SENSOR_TAGS) if file.whole_sensor else []
    if not any(tag[0] == DEFAULT_SCALE for tag in tags) and 0.1 < file.pixel_aspect < 10 and file.pixel_aspect != 1:
        scale = max(file.pixel_aspect, 1), max(1 / file.pixel_aspect, 1)  # across and down; no pixel is lost
        tags.append(_tag(DEFAULT_SCALE, RATIONAL, _rationals(scale)))
    return tags


def _colour_tags(file: RawFile) -> list[Tag]:
    tags = _carried(file, COLOUR_TAGS + COLOUR_TAGS_1_6) if "DNGVersion" in file.tags else []
    carried = {tag[0] for tag in tags}
    if 50721 in carried:  # ColorMatrix1
        return tags
    monitor = np.linalg.inv(SRGB_TO_XYZ).ravel().tolist()  # the tag is required, also where nothing is known
    matrix = file.xyz_to_camera or monitor
    tags += [_tag(50721, SRATIONAL, _rationals(matrix)), _tag(50778, SHORT, (D65,))]
    if file.white_balance and 50728 not in carried:  # AsShotNeutral
        tags.append(_tag(50728, RATIONAL, _rationals([1 / gain for gain in file.white_balance])))
    return tags


def _camera_tags(file: RawFile) -> list[Tag]:
    name = text_of(file.tags, "UniqueCameraModel") or adobes_name(file.make, file.model)
    tags = [
        _tag(50706, BYTE, (1, 6 if any(name in file.tags for name in COLOUR_TAGS_1_6) else 4, 0, 0)),  # DNGVersion
        _tag(50707, BYTE, (1, 1, 0, 0)),  # DNGBackwardVersion
        _text(50708, name),  # UniqueCameraModel
        _tag(274, SHORT, (file.orientation,)),  # Orientation
    ]
    tags += [_text(code, text) for code, text in ((271, file.make), (272, file.model)) if text]
    return tags


# What is not the first word of the make: Ricoh makes Pentax.
BRANDS = ("Pentax", "Kodak", "Epson", "OM Digital Solutions", "Phase One", "Konica Minolta")


def adobes_name(make: str, model: str) -> str:
    """Brand and model in the form of Adobe's UniqueCameraModel, by which programs find profiles: "Nikon D850"."""
    said = f"{make} {model}".lower()
    first = (make.split() or [""])[0]
    brand = next((name for name in BRANDS if name.lower() in said), first.capitalize() if first.isupper() else first)
    own = model[len(brand) :].strip() if f"{model} ".lower().startswith(f"{brand} ".lower()) else model
    return f"{brand} {own}".strip() or "unknown camera"


def packed(code: int, entry: Entry) -> Tag:
    """A field whose values are already in the file's byte order."""
    if entry.kind == ASCII:
        return code, ASCII, 0, entry.data.rstrip(b"\0"), True
    return code, entry.kind, entry.count, entry.data, True


def _tag(code: int, kind: int, value: Any) -> Tag:
    values = tuple(np.atleast_1d(value).tolist())
    count = len(values) // 2 if kind in (RATIONAL, SRATIONAL) else len(values)
    return code, kind, count, values if len(values) > 1 else values[0], True


def _text(code: int, text: str) -> Tag:
    return code, ASCII, 0, text.encode("ascii", "replace").decode(), True


def _utf8(code: int, text: str) -> Tag:
    """Text of a tag that may also be UTF-8, as BYTE (DNG 1.4, OriginalRawFileName)."""
    if text.isascii():
        return _text(code, text)
    data = text.encode(errors="replace") + b"\0"  # a file's name may hold what is no text
    return code, BYTE, len(data), data, True


def _rationals(values: Sequence[float]) -> tuple[int, ...]:
    """Numerators and denominators, alternating, exact to 1e-6."""
    fractions = [Fraction(value).limit_denominator(1_000_000) for value in values]
    return tuple(part for fraction in fractions for part in (fraction.numerator, fraction.denominator))
