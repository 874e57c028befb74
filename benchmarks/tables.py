"""Cells that are computed once, and the Markdown they are written to."""

import argparse
import json
import os
import platform
import subprocess
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

import jax

RESULTS = Path(__file__).parent / "results"
"""Kept with the code: a table can be written anew, and a benchmark go on, on another machine."""


def is_cached(name: str) -> bool:
    """Whether a cell has been computed."""
    return (RESULTS / f"{name}.json").exists()


def cell(name: str, compute: Callable[[], dict]) -> dict:
    """`compute()` and with what it was made, or the same from when it last ran to its end.

    A benchmark so goes on where it was stopped. Delete the file after a change that matters to its figures.
    """
    file = RESULTS / f"{name}.json"
    if file.exists():
        return json.loads(file.read_text())
    result = {"commit": commit()} | compute() | {"made with": environment()}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.rename(file)
    return result


def cells_of(
    doc: str | None, folder: str, jobs: Mapping[str, Callable[[], dict]], quick: Sequence[str] = ()
) -> dict[str, dict]:
    """The command line of a benchmark that resumes: its cells by name, computed where missing.

    With --cached none is computed, with --quick only those named in `quick`, and with --only those that match a file pattern.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cached", action="store_true", help="compute nothing; write what the cells there are say")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PATTERN",
        default=["*"],
        help="cells to compute, as file patterns: a space is a hyphen",
    )
    if quick:
        parser.add_argument("--quick", action="store_true", help=f"compute only {', '.join(quick)}")
    args = parser.parse_args()
    wanted = () if args.cached else quick if quick and args.quick else tuple(jobs)
    cells = {}
    for name, compute in jobs.items():
        file = f"{folder}/{name.replace(' ', '-')}"
        chosen = name in wanted and any(fnmatch(Path(file).name, pattern) for pattern in args.only)
        if chosen or is_cached(file):
            cells[name] = cell(file, compute)
            print(name, {key: value for key, value in cells[name].items() if key != "rows"}, flush=True)
    return cells


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its numbers to the right."""
    lines = [
        "| " + " | ".join(header) + " |",
        "|" + "|".join([" --- "] + [" ---: "] * (len(header) - 1)) + "|",
    ]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def wrapped(text: str) -> str:
    """A Markdown paragraph in lines of at most 196 characters."""
    return textwrap.fill(text, 196, break_long_words=False, break_on_hyphens=False)


def environment() -> str:
    """Versions and kind of machine."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("flowdensity", "jax", "numpyro", "diffrax"))
    return (
        f"Python {platform.python_version()}, {packages}, on {os.cpu_count()} cores of {platform.machine()}, "
        f"{jax.default_backend().upper()}"
    )


def commit() -> str:
    """The commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=RESULTS.parent).stdout.strip()


def provenance(command: str, cells: Iterable[dict]) -> str:
    """With what a table was made: the command, and the environments of its cells; also their commits if all are known."""
    cells = list(cells)
    known = all("commit" in each for each in cells)
    commits = sorted({each["commit"] for each in cells}) if known else []
    at = f"at commit{'s' * (len(commits) > 1)} {', '.join(commits)} " if commits else ""
    made_with = "; ".join(sorted({each["made with"] for each in cells}))
    return f"Made by `{command}` {at}with {made_with}."


def replace_block(file: Path, name: str, text: str) -> None:
    """Put `text` between the comments `<!-- name:begin -->` and `<!-- name:end -->` of a file."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = file.read_text().split(begin)
    _, after = rest.split(end)
    file.write_text(f"{before}{begin}\n{text}\n{end}{after}")
