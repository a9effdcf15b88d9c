"""What changed between two results of one script, beyond the noise of either."""

import math
from collections.abc import Iterator
from typing import Any

from tables import table

LARGE_CHANGE = 1.05  # smaller ones are not worth a line
LEAST_ROUNDS = 3  # of fewer, ranges that do not touch are no evidence


def comparison(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Every series whose ranges do not touch: no round of either run would have hidden the change.

    Raises ValueError for results of two scripts, or of two sizes.
    """
    if before["script"] != after["script"] or before["quick"] != after["quick"]:
        raise ValueError(f"the results are of {_what(before)} and of {_what(after)}; compare one with its like")
    was, is_now = dict(_series(before["measured"])), dict(_series(after["measured"]))
    both = sorted(was.keys() & is_now.keys())
    judged = [name for name in both if min(was[name]["samples"], is_now[name]["samples"]) >= LEAST_ROUNDS]
    changes = [(name, *_change(was[name], is_now[name])) for name in judged if _changed(was[name], is_now[name])]
    by_chance = sum(
        2 / math.comb(was[name]["samples"] + is_now[name]["samples"], was[name]["samples"]) for name in judged
    )
    loads = [result["load_average"]["before"] for result in (before, after)]
    lines = [
        f"{before['machine']['processor']} -> {after['machine']['processor']}; load {loads[0]:.1f} -> {loads[1]:.1f}",
        f"{len(judged)} series compared, {len(changes)} changed beyond the range of their rounds, as up to "
        f"{by_chance:.0f} would by chance; {len(both) - len(judged)} have fewer than {LEAST_ROUNDS} rounds, not judged",
        *([table(("series", "before", "now", "change"), changes)] if changes else []),
        *(f"only in the {'old' if name in was else 'new'}: {name}" for name in sorted(was.keys() ^ is_now.keys())),
    ]
    return "\n".join(lines)


def _changed(was: dict[str, Any], is_now: dict[str, Any]) -> bool:
    apart = is_now["least"] > was["most"] or is_now["most"] < was["least"]
    change = abs(is_now["median"] / was["median"]) if was["median"] else float("inf")
    return apart and not 1 / LARGE_CHANGE < change < LARGE_CHANGE


def _change(was: dict[str, Any], is_now: dict[str, Any]) -> tuple[Any, ...]:
    return was["median"], is_now["median"], f"× {is_now['median'] / was['median']:.2f}" if was["median"] else ""


def _series(tree: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every summary in a result, by its path."""
    if isinstance(tree, dict):
        if {"median", "least", "most"} <= tree.keys():
            yield name, tree
        else:
            for key, branch in tree.items():
                yield from _series(branch, f"{name} / {key}" if name else key)


def _what(result: dict[str, Any]) -> str:
    return f"{result['script']}{' --quick' if result['quick'] else ''}"
