"""Where the time of one file goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .triton import Client


@dataclass
class Stopwatch:
    """Seconds by what was done, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Time the block."""
        started = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - started

    @contextmanager
    def request(self, what: str, client: Client) -> Iterator[None]:
        """Time the block, and what the four models computed meanwhile (for other clients, too)."""
        before = client.stage_seconds()
        with self.timed(what):
            yield
        for stage, spent in client.stage_seconds().items():
            self.seconds[f"  of which {stage}"] = spent - before[stage]
