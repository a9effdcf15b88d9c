"""XMP files beside a RAW file: where each goes, what is left out, and that nothing of it is lost or replaced."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_batch import denoise, lines, make_files, visible

from exposure.client.metadata import XMP, Entry, Metadata
from exposure.client.rawfile import read
from exposure.client.sidecar import with_sidecars

PACKET = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
ADOBE = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
  xmp:Rating="4" xmp:Label="Sterne über Kiel"><dc:subject><rdf:Bag><rdf:li>night</rdf:li></rdf:Bag></dc:subject>
 </rdf:Description></rdf:RDF></x:xmpmeta>"""
DARKTABLE = '<?xml version="1.0" encoding="UTF-8"?>\n' + ADOBE.replace("Kiel", "Köln")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_files(tmp_path / "in", 1)[0]


def carried(source: Path) -> tuple[bytes, dict[str, bytes], str]:
    """What goes into the DNG, what goes beside it, and the warning."""
    sidecars = with_sidecars(read(source), Path("out/DSC0000_exposed.dng"))
    assert sidecars.file.metadata is not None
    entry = sidecars.file.metadata.description.get(XMP, Entry(1, 0, b""))
    return entry.data, {path.name: content for path, content in sidecars.copies.items()}, sidecars.warning


def test_adobes_goes_inside_and_darktables_beside(
    address: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.with_suffix(".xmp").write_text(ADOBE)
    source.with_name("DSC0000.dng.xmp").write_text(DARKTABLE)
    out = tmp_path / "out"
    assert denoise(source, "--out", out, "--server", address, "--json") == 0
    assert "warning" not in lines(capsys)[0]
    assert visible(out) == ["DSC0000_exposed.dng", "DSC0000_exposed.dng.xmp"]
    assert (out / "DSC0000_exposed.dng.xmp").read_text() == DARKTABLE
    metadata = read(out / "DSC0000_exposed.dng").metadata
    assert metadata is not None
    assert metadata.description[XMP].data.decode() == f'{PACKET}\n{ADOBE}\n<?xpacket end="w"?>'
    if shutil.which("exiftool"):
        flags = ["-j", "-XMP:all", "-validate", "-warning"]
        told = subprocess.run(["exiftool", *flags, out / "DSC0000_exposed.dng"], capture_output=True, check=True).stdout
        found: dict[str, Any] = json.loads(told)[0]
        assert (found["Rating"], found["Label"], found["Subject"]) == (4, "Sterne über Kiel", "night")
        assert "Warning" not in found

    (out / "DSC0000_exposed.dng.xmp").write_text("what was done to the result")
    assert denoise(source, "--out", out, "--server", address, "--overwrite") == 0
    assert (out / "DSC0000_exposed.dng.xmp").read_text() == "what was done to the result"


@pytest.mark.parametrize(
    "module",
    [
        '<rdf:li xmlns:darktable="http://darktable.sf.net/" darktable:operation="rawprepare"/>',
        "<rdf:li>rawprepare</rdf:li>",  # as older versions wrote it
    ],
)
def test_levels_that_darktable_noted_are_not_taken_for_others(source: Path, module: str) -> None:
    """It subtracts the black level that its history holds, whatever the file says, and cuts off the margins."""
    history = DARKTABLE.replace("<rdf:li>", f"{module}<rdf:li>")
    source.with_name("DSC0000.dng.xmp").write_text(history)
    result = Path("out/DSC0000_exposed.dng")
    assert list(with_sidecars(read(source), result).copies.values()) == [history.encode()]
    without_margins = replace(read(source), whole_sensor=False)
    for refused in (with_sidecars(read(source), result, new_levels=True), with_sidecars(without_margins, result)):
        assert refused.copies == {}
        assert "DSC0000.dng.xmp beside it is left out (it holds darktable's levels and margins" in refused.warning
    source.with_name("DSC0000.dng.xmp").write_text(DARKTABLE)  # a rating alone
    assert list(with_sidecars(read(source), result, new_levels=True).copies.values()) == [DARKTABLE.encode()]


def test_nothing_is_merged(source: Path) -> None:
    """A DNG with XMP of its own keeps it; the sidecar goes beside the result, whole."""
    source.with_suffix(".XMP").write_text(ADOBE)
    file = replace(read(source), metadata=Metadata("<", description={XMP: Entry(1, 3, b"own")}))
    sidecars = with_sidecars(file, Path("out/a_exposed.dng"))
    assert sidecars.file is file
    assert sidecars.copies == {Path("out/a_exposed.xmp"): ADOBE.encode()}


def test_the_cameras_own_rating_does_not_hide_what_was_edited(source: Path, tmp_path: Path) -> None:
    """A CR2 has XMP inside, with the rating set on the camera; Adobe's programs keep all they know in IMG.xmp."""
    (tmp_path / "in" / "IMG.xmp").write_text(ADOBE)
    inside = Metadata("<", description={XMP: Entry(1, 3, b"own")})
    file = replace(read(source), path=tmp_path / "in" / "IMG.CR2", metadata=inside)
    sidecars = with_sidecars(file, Path("out/a_exposed.dng"))
    assert sidecars.copies == {}
    assert sidecars.file.metadata is not None
    assert ADOBE.encode() in sidecars.file.metadata.description[XMP].data


@pytest.mark.parametrize("start", ["", "\ufeff", '<?xml version="1.0"?>\n', '\ufeff<?xml version="1.0"?>'])
def test_a_packet_has_no_declaration(source: Path, start: str) -> None:
    source.with_suffix(".xmp").write_text(start + ADOBE)
    assert carried(source)[0].decode() == f'{PACKET}\n{ADOBE}\n<?xpacket end="w"?>'
    ready = f'{PACKET}{ADOBE}<?xpacket end="r"?>'
    source.with_suffix(".xmp").write_text(start + ready)
    assert carried(source)[0].decode() == ready


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is not XML: no element found"),
        (ADOBE[:300].encode(), "it is not XML: "),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is XML, but not XMP"),
        (b'<!DOCTYPE a [<!ENTITY e "x">]>' + ADOBE.encode(), "it is XML, but not XMP"),
        (b"<?xml version='1.0' encoding='latin-1'?>" + ADOBE.encode("latin-1"), "it is not in UTF-8"),
        (b" " * ((16 << 20) + 1), "it has more than 16 MiB"),
    ],
)
def test_a_bad_sidecar_is_left_out_with_a_warning(source: Path, content: bytes, reason: str) -> None:
    source.with_suffix(".xmp").write_bytes(content)
    packet, copies, warning = carried(source)
    assert (packet, copies) == (b"", {})
    assert warning.startswith(f"DSC0000.xmp beside it is left out ({reason}")
    assert "\n" not in warning


def test_a_warning_is_told_and_costs_nothing(
    address: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.with_suffix(".xmp").write_text("<broken")
    assert denoise(source, "--out", tmp_path / "out", "--server", address) == 0
    told = capsys.readouterr().err
    assert told.startswith(f"exposure: {source}: DSC0000.xmp beside it is left out (it is not XML: ")
    assert told.count("\n") == 1
    assert visible(tmp_path / "out") == ["DSC0000_exposed.dng"]
