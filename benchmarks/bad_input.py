"""Writes docs/bad-input.md and docs/bad-input-more.md: the error that each case of bad input ends in.

    python benchmarks/bad_input.py    # about two minutes

The cases are in bad_cases/; tests/test_fixes.py runs the fixes. A case is wrong if it passes, or ends in anything but a
TypeError or a ValueError that says what was expected and has a fix; the script then lists it and fails.
"""

import contextlib
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bad_cases import ALIKE, SECTIONS, Case, error_of, is_sound, of_all_fits, write_files
from tables import environment, markdown

DOCS = Path(__file__).parents[1] / "docs"
FITS = ("All fits", "Fits and distillations")
"""Sections of the first page; the others are on the second one."""
PAGES = {
    "bad-input.md": "Errors for bad input: fits",
    "bad-input-more.md": "Errors for bad input: densities, diagnostics and files",
}
INTRODUCTION = """\
# {title}

Input is checked before any work is done. {sound} {tried} cases that were tried end in a `TypeError` or a `ValueError`
that says what was expected and what came. Each message ends with `Fix:` and a line of Python
that names arguments by their parameters. If the line ends with an assignment or `del`, run it and repeat the call.
Otherwise, run it instead of the call. A test runs each of these lines in the situation that it was written for.
"""
NOT_YET = """\
These are accepted, or end in an error of some library's. The script that makes this page fails as long as there is one.

"""


class Answer(NamedTuple):
    """The error that a case ended in, if it did."""

    case: Case
    error: Exception | None

    @property
    def message(self) -> str:
        """The error's message."""
        return "nothing: it was accepted" if self.error is None else str(self.error)

    @property
    def row(self) -> list[str]:
        """A row of the table."""
        own = next((kind for kind in (TypeError, ValueError) if isinstance(self.error, kind)), type(self.error))
        kind = "none" if self.error is None else f"`{own.__name__}`"
        return [f"`{self.case.call}`", cell(self.case.given), kind, cell(self.message)]


def answers(groups: Iterable[Iterable[Case]]) -> list[Answer]:
    """Try all cases of some groups."""
    return [Answer(case, error_of(case)) for group in groups for case in group]


def cell(text: str) -> str:
    """Text for a cell of a Markdown table: nothing in it is markup but code between backticks, and the fix is code."""
    words, fix, line = " ".join(text.split()).rpartition("Fix: ")
    parts = re.split(r"(`[^`]*`)", words if fix else line)
    plain = "".join(
        part.replace("|", r"\|") if number % 2 else re.sub(r"([\\*_{}\[\]<>#|$~^])", r"\\\1", part)
        for number, part in enumerate(parts)
    )
    return f"{plain}Fix: `{line.replace('|', chr(92) + '|')}`" if fix else plain


def section(title: str, found: Iterable[Answer], remark: str = "") -> str:
    """A heading, a remark and a table of answers."""
    header = ["call", "with", "error", "message"]
    table = markdown(header, [each.row for each in found]).replace("---:", "---")
    return f"## {title}\n\n{remark}{table}\n"


def main() -> None:
    """Try every case, write the page, and fail if one went wrong."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_files()
        sections = {title: answers(groups) for title, groups in SECTIONS.items()}
        others = {name: answers([of_all_fits(name)]) for name in ALIKE[1:]}
    title, first = "All fits", ALIKE[0]
    different = [
        each
        for name, found in others.items()
        for each, other in zip(found, sections[title], strict=True)
        if each.message.replace(name, first) != other.message
    ]
    everything = [each for found in (*sections.values(), *others.values()) for each in found]
    wrong = [each for each in everything if not is_sound(each.error)] + different
    names = " and ".join(f"`{name}`" for name in ALIKE[1:])
    remarks = {title: f"The messages below are those of `{first}`. {names} raise the same ones.\n\n"}
    tables = {
        title: section(title, [each for each in found if is_sound(each.error)], remarks.get(title, ""))
        for title, found in sections.items()
    }
    count, tried = sum(is_sound(each.error) for each in everything), len(everything)
    if wrong:
        tables["Not yet"] = section("Not yet", wrong, NOT_YET)
    made = f"\nMade by `python benchmarks/bad_input.py` with {environment()}.\n"
    for page, heading in PAGES.items():
        introduction = INTRODUCTION.format(
            title=heading, sound="All" if count == tried else f"{count} of the", tried=tried
        )
        own = [text for title, text in tables.items() if (title in FITS) == (page == "bad-input.md")]
        (DOCS / page).write_text("\n".join([introduction, *own]) + made)
    for each in wrong:
        print(f"wrong: {each.case.call}, {each.case.given}: {each.message}", file=sys.stderr)
    print(f"{tried} cases, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
