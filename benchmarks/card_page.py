"""What `make gpu-check` found on a card, as a page beside its JSON.

python benchmarks/card_page.py RESULTS/CARD.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from tables import table

KERNELS, SERVED = "kernel bandwidth", "Triton with every model on the card"


def main() -> int:
    """0 when the page was written, else 1 with one sentence."""
    try:
        path = write_page(Path(sys.argv[1]))
    except (IndexError, OSError, ValueError, KeyError) as error:
        print(f"card_page: one result of make gpu-check is wanted ({error!r})", file=sys.stderr)
        return 1
    print(f"written: {path}")
    return 0


def write_page(result: Path) -> Path:
    """The page has the name of the JSON."""
    path = result.with_suffix(".md")
    path.write_text(page(json.loads(result.read_text())), "utf-8")
    return path


def page(found: dict[str, Any]) -> str:
    """Outcomes of all checks, then the figures of those that measure something."""
    checks = found["checks"]
    machine = ", ".join(f"{name} {text}" for name, text in found["machine"].items())
    rows = [(name, check["outcome"], check.get("date", ""), check.get("why", "")) for name, check in checks.items()]
    peers = [_peers(name, check) for name, check in checks.items() if "frame" in check and "peers" in check]
    others = [
        f"`{name}` was checked earlier, with " + ", ".join(f"{what} {text}" for what, text in check["machine"].items())
        for name, check in checks.items()
        if check.get("machine", {}).items() - found["machine"].items()
    ]
    parts = [
        f"# {found['card']}",
        f"Compute capability {found['compute_capability']}, CUDA {found['cuda']}; {machine}. `{found['command']}`",
        table(("check", "outcome", "date", "why"), rows),
        "\n".join(f"- {line}" for line in others),
        _kernels(checks.get(KERNELS, {})),
        _engines(checks.get("engines", {})),
        *peers,
        _requests(checks.get(SERVED, {})),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _kernels(check: dict[str, Any]) -> str:
    speeds = check.get("kernels", {})
    rows = [
        (name, f"{s['median_us']} ({s['least_us']} to {s['most_us']})", s["gb_per_s"], f"{100 * s['of_copy']:.0f} %")
        for name, s in speeds.items()
    ]
    title = ("kernel", "µs a launch, median (least to most)", "GB/s", "of the card's own copy")
    return f"## Kernels, {check['frame']}{_clock(check)}\n\n{table(title, rows)}" if rows else ""


def _engines(check: dict[str, Any]) -> str:
    rows = [
        (name, engine["outcome"], engine.get("numbers", ""), engine.get("ms_per_pass", ""), engine.get("why", ""))
        for name, engine in check.get("engines", {}).items()
    ]
    title = ("engine", "accuracy gate", "numbers", "ms a pass", "why")
    return f"## Engines, held against FP32 torch\n\n{table(title, rows)}" if rows else ""


def _peers(name: str, check: dict[str, Any]) -> str:
    from sections import frame_table  # imports the package, which need not be here if there is nothing to show

    ceilings, peers = check["ceilings"], check["peers"]
    kind, _, size = name.partition(" at ")
    agreements = {name: peer["agreement_db"] for name, peer in peers.items() if "agreement_db" in peer}
    missing = "".join(f"- {name}: {peer['why']}\n" for name, peer in peers.items() if peer["outcome"] != "passed")
    shown = frame_table(size, check["frame"], agreements, check["baseline"])
    return (
        f"## One pass at {size}, {kind}\n\nCeilings of the card: {ceilings['gflops']:g} GFLOP/s in FP16 and "
        f"{ceilings['gbytes_per_s']:g} GB/s{_clock(check)}.\n\n{shown}"
        + (f"\n\nNot timed:\n\n{missing}" if missing else "")
    )


def _clock(check: dict[str, Any]) -> str:
    return f", at {check['sm_clock_mhz']} MHz" if check.get("sm_clock_mhz") else ""


def _requests(check: dict[str, Any]) -> str:
    rows = [
        (size, *(f"{1e3 * seconds[name]:.1f}" for name in ("median", "least", "most", "mean of the rest")))
        for size, seconds in check.get("seconds_per_request_of_3_passes", {}).items()
    ]
    title = ("frame", "ms, median", "least", "most", "beyond the models, mean")
    return f"## Requests of three passes\n\n{table(title, rows)}" if rows else ""


if __name__ == "__main__":
    sys.exit(main())
