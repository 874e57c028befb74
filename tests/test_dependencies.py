"""What makes the trained fixtures anew: the code that they run, and not what is said about it."""

from pathlib import Path

import pytest
from dependencies import dependencies, digest_of_sources

ROOT = Path(__file__).parents[1]
SOURCES = {
    "conftest.py": "import package as p\nfrom helpers import A\np.fit(A)\n",
    "helpers.py": "A = 1\n",
    "package/__init__.py": "from .training.fit import fit as fit\nfrom .plots import draw as draw\n",
    "package/plots.py": "def draw(): pass\n",
    "package/training/__init__.py": "",
    "package/training/fit.py": 'from ..data import tables\n\ndef fit(rows):\n    """Says."""\n    from .loop import train\n',
    "package/training/loop.py": "def train(): pass\n",
    "package/data/__init__.py": "",
    "package/data/tables.py": "B = 2\n",
}


def digest(folder: Path, changed: dict[str, str]) -> str:
    for name, text in (SOURCES | changed).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return digest_of_sources(folder / "conftest.py", (folder,))


@pytest.mark.parametrize(
    ("file", "before", "after", "changes"),
    [
        ("package/training/fit.py", "Says", "Says something else", False),
        ("package/training/fit.py", "(rows):\n", "(  # a comment\n    rows):\n", False),
        ("package/plots.py", "pass", "return 1", False),
        ("package/training/fit.py", "rows", "table", True),
        ("package/training/loop.py", "pass", "return 1", True),
        ("package/data/tables.py", "2", "3", True),
        ("helpers.py", "1", "3", True),
        ("conftest.py", "A)", "-A)", True),
    ],
)
def test_the_code_that_is_run_counts_and_nothing_else(tmp_path, file, before, after, changes):
    assert before in SOURCES[file]
    digests = [digest(tmp_path / "old", {}), digest(tmp_path / "new", {file: SOURCES[file].replace(before, after)})]
    assert (digests[0] != digests[1]) is changes


def test_the_trained_fixtures_stand_on_training_and_not_on_diagnostics():
    found = dependencies(ROOT / "tests" / "conftest.py", (ROOT / "tests", ROOT))
    names = {file.relative_to(ROOT).as_posix() for file in found}
    assert {"flowdensity/training/fit.py", "flowdensity/training/loop.py", "flowdensity/models/networks.py"} <= names
    assert {"tests/conftest.py", "tests/references.py"} <= names
    assert not any(name.startswith("flowdensity/diagnostics/") for name in names)
