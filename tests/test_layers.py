"""Data flows one way, and so do imports: a folder takes from those before it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROJECT

LAYERS = ("exposure", "kernels", "client", "training", "export")
# The definition draws its photons by the kernels' generator, so that it and the server draw the same ones; and
# `exposure train` and `exposure evaluate` are commands like the others.
UPWARDS = {("exposure/denoise.py", "kernels"), ("client/command.py", "training")}


def _imported(file: Path) -> Iterator[str]:
    package = ("exposure", *(part for part in file.relative_to(PROJECT).parent.parts if part != "exposure"))
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*start, *filter(None, [node.module])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _layer(module: str) -> str:
    """Of exposure.client.x: client; of exposure.x: exposure."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else parts[0]


@pytest.mark.parametrize("folder", LAYERS)
def test_a_folder_takes_only_from_those_before_it(folder: str) -> None:
    above = set(LAYERS[LAYERS.index(folder) + 1 :])
    files = sorted((PROJECT / folder).rglob("*.py"))
    assert files
    upwards = {
        (str(file.relative_to(PROJECT)), layer)
        for file in files
        for layer in {_layer(module) for module in _imported(file) if module.startswith("exposure.")} & above
    }
    assert upwards == {(file, layer) for file, layer in UPWARDS if file.startswith(f"{folder}/")}
