"""Every error ends in a line of Python that mends the situation that raised it."""

import ast
import shutil
import sys
import warnings
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

SECTIONS = (
    "All fits",
    "Fits and distillations",
    "Densities, sites and guides",
    "Models and networks",
    "Solvers, estimators and rounded data",
    "Posteriors of models",
    "Diagnostics",
    "Files",
    "Pictures",
)
LONG = ("All fits", "Densities, sites and guides", "Posteriors of models", "Diagnostics", "Pictures")


@pytest.fixture(scope="module")
def bad_cases():
    """The cases of the page of bad input; imported late, since they make densities."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        import bad_cases

        yield bad_cases
    for name in [name for name in sys.modules if name.partition(".")[0] == "bad_cases"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def files(bad_cases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        bad_cases.write_files()
    return folder


@pytest.fixture
def fresh(files, tmp_path, monkeypatch):
    """Makes a folder with the files of the cases the current one."""
    matplotlib.use("Agg")

    def enter(number):
        folder = tmp_path / str(number)
        shutil.copytree(files, folder)
        monkeypatch.chdir(folder)

    yield enter
    plt.close("all")


def failure(bad_cases, case):
    """What is wrong with the error of a case or with its fix; None if both are right."""
    error = bad_cases.error_of(case)
    if not bad_cases.is_sound(error):
        return f"ended in {error!r}"
    try:
        with bad_cases.untrained_fits():
            bad_cases.mend(case, str(error))
    except Exception as left:
        return f"said {error}\n  and the fix ended in {left!r}"
    return None


def test_all_sections_are_tried(bad_cases):
    assert tuple(bad_cases.SECTIONS) == SECTIONS


@pytest.mark.parametrize(
    "section", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in SECTIONS]
)
def test_every_fix_mends_the_case_that_it_is_for(bad_cases, fresh, section):
    failures = []
    for number, case in enumerate(case for group in bad_cases.SECTIONS[section] for case in group):
        fresh(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            problem = failure(bad_cases, case)
        if problem is not None:
            failures.append(f"{case.call} with {case.given} {problem}")
    assert not failures, "\n".join(failures)


def test_a_fix_that_does_not_mend_is_found(bad_cases):
    case = bad_cases.SECTIONS["Solvers, estimators and rounded data"][0][0]
    for fix, left in (("steps = 0", ValueError), ("steps = unknown", NameError), ("more steps", SyntaxError)):
        with pytest.raises(left):
            bad_cases.mend(case, f"FixedStep expected another `steps`. Fix: {fix}")


@pytest.mark.parametrize("other", ["fit_diffusion", "fit_likelihood"])
def test_all_fits_say_the_same(bad_cases, fresh, other):
    fresh(0)
    first = bad_cases.ALIKE[0]
    for one, another in zip(bad_cases.of_all_fits(first), bad_cases.of_all_fits(other), strict=True):
        assert str(bad_cases.error_of(another)).replace(other, first) == str(bad_cases.error_of(one))


PACKAGE = Path(__file__).parents[1] / "flowdensity"


def texts(node):
    """The text of each string literal in a syntax tree, with a name in the place of whatever is formatted into it."""
    if isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
        yield "".join(map(str, parts))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


def test_every_fix_in_the_source_is_python():
    """Those of warnings and of diagnoses, too."""
    fixes = [
        (file.name, text.rpartition("Fix: ")[2])
        for file in sorted(PACKAGE.rglob("*.py"))
        for text in texts(ast.parse(file.read_text()))
        if "Fix: " in text
    ]
    assert len(fixes) > 100
    wrong = []
    for name, fix in fixes:
        try:
            ast.parse(fix)
        except SyntaxError:
            wrong.append((name, fix))
    assert not wrong
