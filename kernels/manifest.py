"""The manifest beside each engine: what it was built from, and what the server must know about it."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exposure.assets import MODEL_REPOSITORY
from exposure.files import sha256

from .machine import library_version, mismatch, this_machine

NAME = "manifest.json"


class EngineError(RuntimeError):
    """An engine that is missing, incomplete or not the one its manifest describes; the message is one sentence."""


@dataclass(frozen=True)
class EngineManifest:
    """Everything about an engine that its users, its server and the next build must know.

    photon_unit: U in DN. multiple: of the plane sides. precision: of the body; islands: modules of it that stay FP32.
    convolutions: "winograd" where the kernels of csrc/unet.h compute the network on a CPU.
    frames: mosaic sizes, width x height, that it is made ready for; planes: sides (height, width) of what callers send
    of each. profile: plane sides that it takes; only plans are bound to them.
    runs_on: library and card that it was built for. accuracy: where it was run, and the gate's figures.
    built_from: everything that, if changed, makes a new engine. rebuild: the command. files: SHA-256 by name.
    """

    target: str
    network: str
    inputs: list[str]
    photon_unit: float
    multiple: int
    precision: str
    islands: list[str]
    frames: list[str]
    profile: dict[str, list[int]]
    planes: list[list[int]]
    licence: str
    runs_on: dict[str, str]
    accuracy: dict[str, Any]
    built_from: dict[str, str]
    build_seconds: float
    rebuild: str
    convolutions: str = ""
    files: dict[str, str] = field(default_factory=dict)


def build_command(repository: Path, target: str = "", more: Sequence[str] = ()) -> str:
    """The command line, in the project's folder, that builds an engine and installs it in a repository.

    more: further words. The project's own repository is the default and left out.
    """
    words = ["python", "export/build_engine.py", *(["--target", target] if target else [])]
    words += [] if repository.resolve() == MODEL_REPOSITORY.resolve() else ["--repository", str(repository.resolve())]
    return shlex.join([*words, *more])


def build_command_for(folder: Path) -> str:
    """The same for the folder of an engine, repository/denoiser/1/target; its settings are not known."""
    folder = folder.absolute()
    if folder.parts[-3:-1] != ("denoiser", "1"):
        return build_command(MODEL_REPOSITORY)
    return build_command(folder.parents[2], folder.name)


def parsed_manifest(folder: Path) -> EngineManifest:
    """What the manifest of an installed engine says, of files that nobody looked at. Raises EngineError."""
    try:
        return EngineManifest(**json.loads((folder / NAME).read_text("utf-8")))
    except FileNotFoundError as error:
        raise EngineError(f"no engine in {folder}; build one with: {build_command_for(folder)}") from error
    except (OSError, ValueError, TypeError) as error:
        raise EngineError(
            f"{folder / NAME} is not an engine manifest; rebuild with: {build_command_for(folder)}"
        ) from error


def read_manifest(folder: Path) -> EngineManifest:
    """The manifest of an installed engine, its files held against it. Raises EngineError."""
    manifest = parsed_manifest(folder)
    for name, digest in manifest.files.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise EngineError(f"{folder / name} is not the file that was built; rebuild with: {manifest.rebuild}")
    return manifest


def trusted_manifest(folder: Path, target: str, checkpoint: Path | None = None) -> EngineManifest:
    """The manifest of an engine that may be loaded here: whole, of this target, built for this library and card.

    checkpoint: the file that it should have been built from. Raises EngineError, one sentence that names both sides.
    """
    manifest = read_manifest(folder)
    if manifest.target != target:
        raise EngineError(f"{folder} holds an engine for {manifest.target}; this is the {target} loader")
    problem = mismatch(manifest.runs_on, this_machine(), library_version(target))
    if checkpoint is not None and sha256(checkpoint) != manifest.built_from["checkpoint"]:
        built, asked = manifest.built_from["checkpoint"][:12], sha256(checkpoint)[:12]
        problem = f"was built from the checkpoint of SHA-256 {built}..., and {checkpoint} is {asked}..."
    if problem:
        raise EngineError(f"the engine in {folder} {problem}; rebuild with: {manifest.rebuild}")
    return manifest
