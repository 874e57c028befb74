"""Cells that are computed once, and the Markdown they are written to."""

import json
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

CACHE = Path("outputs")


def is_cached(name: str) -> bool:
    """Whether a cell has been computed."""
    return (CACHE / f"{name}.json").exists()


def cell(name: str, compute: Callable[[], dict]) -> dict:
    """`compute()`, or what it returned when it last ran to its end: a benchmark resumes where it was stopped."""
    file = CACHE / f"{name}.json"
    if file.exists():
        return json.loads(file.read_text())
    result = compute()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1))
    partial.rename(file)
    return result


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its numbers to the right."""
    lines = [
        "| " + " | ".join(header) + " |",
        "|" + "|".join([" --- "] + [" ---: "] * (len(header) - 1)) + "|",
    ]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def provenance(command: str) -> str:
    """With what a table was made: command, versions and kind of machine."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("flowdensity", "jax", "numpyro", "diffrax"))
    return (
        f"Made by `{command}` with Python {platform.python_version()}, {packages}, on {os.cpu_count()} cores of "
        f"{platform.machine()}, no GPU."
    )


def replace_block(file: Path, name: str, text: str) -> None:
    """Put `text` between the comments `<!-- name:begin -->` and `<!-- name:end -->` of a file."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = file.read_text().split(begin)
    _, after = rest.split(end)
    file.write_text(f"{before}{begin}\n{text}\n{end}{after}")
