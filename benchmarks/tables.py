"""How figures are written in Markdown."""

from typing import Any


def table(title: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table."""
    lines = [title, ("---",) * len(title), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def ratio(series: dict[str, Any]) -> str:
    """Median, least and most of the rounds."""
    return f"{series['median']:.3g} ({series['least']:.3g} to {series['most']:.3g})"


def seconds(series: dict[str, Any]) -> str:
    """The median, three digits."""
    return f"{series['median']:.3g}"


def percent(share: float) -> str:
    """A share of one."""
    return f"{100 * share:.0f} %"
