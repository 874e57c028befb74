"""Times of several calls that take turns, so that what else the machine does falls on all of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int, repeats: int = 1) -> dict[str, float]:
    """Seconds that each call takes: medians of so many rounds after a first one, each of `repeats` calls in a row."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(repeats):
                jax.block_until_ready(call())
            times[name].append((time.perf_counter() - started) / repeats)
    return {name: float(np.median(each)) for name, each in times.items()}
