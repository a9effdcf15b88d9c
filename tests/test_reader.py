"""What crosses the pipe between a reader's child and its parent, and where it may break off."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from exposure.client import reader
from exposure.client.dng import write_dng
from exposure.client.rawfile import RawFile, RawFileError
from exposure.client.reader import Reader
from exposure.sensor import Sensor

PLENTY = 2**20  # bytes: more than a pipe holds, so that they come in parts


@pytest.fixture
def child() -> Iterator[Reader]:
    started = Reader()
    yield started
    started.close()


def written(path: Path, height: int, width: int) -> RawFile:
    mosaic = np.random.default_rng(0).integers(600, 4000, (height, width)).astype(np.uint16)
    file = RawFile(path, mosaic, Sensor((512, 512, 512, 512), 4095, ((0, 1), (1, 2))))
    write_dng(path, file, mosaic)
    return file


def test_a_frame_arrives_as_it_was(tmp_path: Path, child: Reader) -> None:
    file = written(tmp_path / "a.dng", 1000, 1500)
    back = child.read(file.path).mosaic
    np.testing.assert_array_equal(back, file.mosaic)
    back[0, 0] = 0  # it is the parent's own


def test_arrays_of_every_kind_arrive() -> None:
    plenty = np.arange(PLENTY, dtype=np.uint16).reshape(64, -1)
    sent: list[NDArray[np.uint16]] = [
        plenty,
        plenty[:0],
        plenty[::2, ::3],
        np.asfortranarray(plenty),
        plenty[5, 5, ...],
    ]
    near, far = Pipe()
    with near, far, ThreadPoolExecutor(1) as other:
        sending = other.submit(reader._send, far, {"some": sent, "text": "besides"})
        received = reader._received(near)
        sending.result()
        assert not near.poll(0)  # nothing is left over
    assert received["text"] == "besides"
    for there, here in zip(received["some"], sent, strict=True):
        np.testing.assert_array_equal(there, here, strict=True)


@pytest.mark.parametrize("share", [0.0, 1e-6, 1e-5, 1e-4, 0.5, 0.999])
def test_an_answer_that_breaks_off_costs_one_file(tmp_path: Path, child: Reader, share: float) -> None:
    """In its length, its head, or an array."""
    file = written(tmp_path / "a.dng", 64, 64)
    child._pipe, far = Pipe()
    with ThreadPoolExecutor(1) as other:

        def answer_in_part() -> None:
            with far:
                far.recv()
                message = whole_message(np.zeros(PLENTY, np.uint8))
                assert len(message) > PLENTY
                part = message[: int(share * len(message))]
                while part:
                    part = part[os.write(far.fileno(), part) :]

        answering = other.submit(answer_in_part)
        with pytest.raises(RawFileError, match="LibRaw crashed on it"):
            child.read(file.path)
        answering.result()
    np.testing.assert_array_equal(child.read(file.path).mosaic, file.mosaic)


def whole_message(answer: object) -> bytes:
    near, far = Pipe()
    with near, ThreadPoolExecutor(1) as other:

        def send() -> None:
            with far:
                reader._send(far, answer)

        sending = other.submit(send)
        message = b"".join(iter(lambda: os.read(near.fileno(), PLENTY), b""))
        sending.result()
    return message


def test_what_is_left_of_an_answer_is_not_taken_for_the_next(
    tmp_path: Path, child: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "a.dng", 1000, 1500)
    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", no_room)
        with pytest.raises(MemoryError):
            child.read(file.path)
    np.testing.assert_array_equal(child.read(file.path).mosaic, file.mosaic)


def no_room(*_: object) -> None:
    raise MemoryError
