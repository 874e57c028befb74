"""The house rules: who imports whom, how long a file may be, and what is documented."""

import ast
import inspect
from pathlib import Path

import pytest

import flowdensity as fd

PACKAGE = Path(fd.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
WINGS = [
    {
        "_typing",
        "_arrays",
        "_checks",
        "_pytree",
        "_blocks",
        "_container",
        "_warnings",
        "_display",
        "_registry",
        "_numpyro",
        "_squash",
    },
    {"data"},
    {"references"},
    {"models"},
    {"divergence"},
    {"solving"},
    {"distributions"},
    {"training"},
    {"diagnostics"},
    {"inference"},
    {"storage"},
    {"checks", "divergences", "encoders", "networks", "objectives", "paths", "plots", "results", "solvers"},
]
"""From the foundation up: a wing imports from itself and from the wings before it; those of one line are alike."""

LEVELS = {name: level for level, names in enumerate(WINGS) for name in names}
modules = pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(PACKAGE)) for file in FILES])


def wing_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py") if parts else ""


def imported_parts(file: Path) -> list[tuple[str, ...]]:
    """Path, from the package's root, of everything in the package that a file imports, wherever in it."""
    here = file.relative_to(PACKAGE).parts[:-1]
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            module = tuple(node.module.split(".")) if node.module else ()
            found += [base + module + (alias.name,) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flowdensity":
            found += [(*node.module.split(".")[1:], alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [
                tuple(alias.name.split(".")[1:]) for alias in node.names if alias.name.split(".")[0] == "flowdensity"
            ]
    return found


def test_there_is_something_to_check():
    assert len(FILES) > 20
    assert {wing_of(file.relative_to(PACKAGE).parts) for file in FILES} - {"__init__"} <= set(LEVELS)
    assert sum(len(imported_parts(file)) for file in FILES) > 50


@modules
def test_a_wing_imports_only_from_the_wings_before_it(file):
    wing = wing_of(file.relative_to(PACKAGE).parts)
    if wing == "__init__":
        return  # the public face imports everything
    for parts in imported_parts(file):
        other = wing_of(parts)
        assert other in LEVELS, f"{file.name} imports {'.'.join(parts)}"
        assert other == wing or LEVELS[other] <= LEVELS[wing], f"{wing} imports from {other}: {'.'.join(parts)}"


def test_there_is_no_cycle_between_files():
    """Whatever the wings say: within one of them, too, the files are in an order."""
    graph = {}
    for file in FILES:
        name = file.relative_to(PACKAGE).with_suffix("").parts
        graph[name] = {
            candidate
            for parts in imported_parts(file)
            for candidate in (parts, parts[:-1])
            if (PACKAGE.joinpath(*candidate).with_suffix(".py")).is_file() and candidate != name
        }
    done, open_now = set(), []

    def visit(name):
        assert name not in open_now, " -> ".join("/".join(n) for n in [*open_now, name])
        if name in done:
            return
        open_now.append(name)
        for other in graph.get(name, ()):
            visit(other)
        done.add(open_now.pop())

    for name in graph:
        visit(name)


@modules
def test_a_file_has_one_idea(file):
    assert len(file.read_text().splitlines()) <= 400


@modules
def test_every_file_says_what_it_is(file):
    tree = ast.parse(file.read_text())
    if file.name == "__init__.py" and not tree.body:
        return  # the marker of a wing
    assert ast.get_docstring(tree)


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.name == "__init__.py"], ids=lambda f: str(f.relative_to(PACKAGE))
)
def test_init_files_hold_no_logic(file):
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant)  # the docstring
        elif isinstance(node, ast.Assign):
            assert [target.id for target in node.targets] in (["__version__"], ["__all__"])
        elif isinstance(node, ast.FunctionDef):
            assert node.name == "__dir__"
        else:
            assert isinstance(node, ast.ImportFrom)


NAMESPACES = ("checks", "divergences", "models", "networks", "objectives", "paths", "plots", "results", "solvers")


def exported(module) -> dict:
    """What a namespace re-exports, by name."""
    tree = ast.parse(Path(module.__file__).read_text())
    names = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    return {name: getattr(module, name) for name in names}


PUBLIC = {name: getattr(fd, name) for name in fd.__all__ if name not in NAMESPACES}
for namespace in NAMESPACES:
    PUBLIC |= {f"{namespace}.{name}": thing for name, thing in exported(getattr(fd, namespace)).items()}
# A tuple has no docstring of its own.
PUBLIC = {name: thing for name, thing in sorted(PUBLIC.items()) if name != "checks.CHECKS"}


@pytest.mark.parametrize(("name", "thing"), PUBLIC.items(), ids=PUBLIC.keys())
def test_every_public_name_is_documented(name, thing):
    assert "__doc__" in vars(thing) or inspect.isfunction(thing)
    own = thing.__doc__
    assert own
    assert own.strip().split("\n")[0].rstrip().endswith((".", ":", ")"))  # one sentence first
    if name.startswith("checks.") and inspect.isfunction(thing):
        # What a check needs: `AbstractCheck` says what such a function takes and returns.
        assert list(inspect.signature(thing).parameters) == ["subject"]
    elif inspect.isfunction(thing):
        for section in ("Args:", "Returns:", "Raises:"):
            assert section in own, f"{name} lacks {section}"
        for parameter in inspect.signature(thing).parameters:
            assert f"{parameter}:" in own, f"{name} does not say what `{parameter}` is"
    else:
        for method, member in vars(thing).items():
            if not method.startswith("_") and inspect.isfunction(member):
                assert inspect.getdoc(getattr(thing, method)), f"{name}.{method}"


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_namespace_lists_what_it_exports_and_nothing_else(namespace):
    module = getattr(fd, namespace)
    assert {name for name in dir(module) if not name.startswith("__")} == set(exported(module))


def test_nothing_is_pickled():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "cloudpickle", "dill"} & set(names), file.name


def test_the_public_face_is_small_and_has_no_wings():
    assert set(dir(fd)) == {*fd.__all__, "__version__"}
    assert set(NAMESPACES) <= set(fd.__all__)
    assert len(fd.__all__) <= 50
    assert {"fit_flow", "fit_divergence", "FlowDensity", "FlowReparam", "Training"} <= set(fd.__all__)
    wings = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"models"}
    assert not wings & set(dir(fd))
    assert fd.__version__
