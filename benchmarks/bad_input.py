"""What flowdensity says to bad input: each kind that was tried, on every public function and class that checks what it gets.

    python benchmarks/bad_input.py    # about a minute and a half

The cases are in bad_cases.py. One is wrong if it passes, or ends in anything but a TypeError or a ValueError that says what
was expected and has a fix; the script then lists it and fails. Writes docs/bad-input.md.
"""

import contextlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bad_cases import ALIKE, Cases, of_all_fits, of_densities, of_fits, of_models, of_plots, of_trust, write_files
from tables import environment, markdown

PAGE = Path(__file__).parents[1] / "docs" / "bad-input.md"
INTRODUCTION = """\
# What it says to bad input

Input is checked before any work is done. {sound} {tried} cases that were tried end in a `TypeError` or a `ValueError`
that says what was expected, what came and, in the end, what to do.
"""
NOT_YET = """\
These are accepted, or end in an error of some library's. The script that makes this page fails as long as there is one.

"""


class Answer(NamedTuple):
    """What came of a case.

    Attributes:
        function: what was called.
        handed: what was handed over.
        error: type of the error; None if there was none.
        message: its message.
    """

    function: str
    handed: str
    error: type[Exception] | None
    message: str

    @property
    def sound(self) -> bool:
        """Whether it is an error of the right kind that says what was expected and what to do."""
        kind = self.error is not None and issubclass(self.error, TypeError | ValueError)
        return kind and "expected" in self.message and "Fix:" in self.message

    @property
    def row(self) -> list[str]:
        """Of the table."""
        own = next(
            (kind for kind in (TypeError, ValueError) if self.error and issubclass(self.error, kind)), self.error
        )
        kind = "none" if own is None else f"`{own.__name__}`"
        return [f"`{self.function}`", cell(self.handed), kind, cell(self.message)]


def answer(function: str, handed: str, case: Callable[[], Any]) -> Answer:
    """Try a case."""
    try:
        case()
    # Whatever comes is what is looked at.
    except Exception as error:
        return Answer(function, handed, type(error), str(error))
    return Answer(function, handed, None, "nothing: it was accepted")


def answers(groups: dict[str, Cases]) -> list[Answer]:
    """Try all cases of some functions."""
    return [answer(name, handed, case) for name, cases in groups.items() for handed, case in cases.items()]


def cell(text: str) -> str:
    """Text for a cell of a Markdown table: nothing in it is markup but code between backticks."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        part.replace("|", r"\|") if number % 2 else re.sub(r"([\\*_{}\[\]<>#|$~^])", r"\\\1", part)
        for number, part in enumerate(parts)
    )


def section(title: str, found: Iterable[Answer], remark: str = "") -> str:
    """A heading, a remark and a table of answers."""
    header = ["called", "with", "error", "message"]
    table = markdown(header, [each.row for each in found]).replace("---:", "---")
    return f"## {title}\n\n{remark}{table}\n"


def main() -> None:
    """Try every case, write the page, and fail if one went wrong."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_files()
        alike = {name: answers({name: of_all_fits(name)}) for name in ALIKE}
        sections = {
            "Fits and distillations": answers(of_fits()),
            "Densities, sites and guides": answers(of_densities()),
            "Models, networks, solvers and estimators": answers(of_models()),
            "Diagnostics and files": answers(of_trust()),
            "Pictures": answers(of_plots()),
        }
    first = ALIKE[0]
    different = [
        each
        for name, found in alike.items()
        for each, other in zip(found, alike[first], strict=True)
        if each.message.replace(name, first) != other.message
    ]
    everything = [each for found in (*alike.values(), *sections.values()) for each in found]
    others = " and ".join(f"`{name}`" for name in ALIKE[1:])
    wrong = [each for each in everything if not each.sound] + different
    said = {"All fits": alike[first]} | sections
    remarks = {"All fits": f"In the words of `{first}`; {others} say the same.\n\n"}
    tables = [
        section(title, [each for each in found if each.sound], remarks.get(title, "")) for title, found in said.items()
    ]
    count, tried = sum(each.sound for each in everything), len(everything)
    introduction = INTRODUCTION.format(sound="All" if count == tried else f"{count} of the", tried=tried)
    if wrong:
        tables.append(section("Not yet", wrong, NOT_YET))
    PAGE.write_text(
        "\n".join([introduction, *tables]) + f"\nMade by `python benchmarks/bad_input.py` with {environment()}.\n"
    )
    for each in wrong:
        kind = "no error" if each.error is None else each.error.__name__
        print(f"wrong: {each.function}, {each.handed}: {kind}: {each.message}", file=sys.stderr)
    print(f"{len(everything)} cases, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
