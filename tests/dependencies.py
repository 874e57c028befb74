"""What a module stands on: the sources that it imports, without what does not run."""

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path


class _WithoutDocstrings(ast.NodeTransformer):
    """Drops every string that stands alone: docstrings, and those below a constant."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


@functools.cache
def parsed(file: Path) -> ast.Module:
    """The syntax tree of a file, without comments, layout and docstrings."""
    return _WithoutDocstrings().visit(ast.parse(file.read_text()))


def file_of(roots: Iterable[Path], parts: tuple[str, ...]) -> Path | None:
    """The file of a module, given by the parts of its name, or None where it is not below one of the roots."""
    candidates = [
        path
        for root in roots
        for path in (root.joinpath(*parts).with_suffix(".py"), root.joinpath(*parts, "__init__.py"))
    ]
    return next((path for path in candidates if parts and path.is_file()), None)


def attributes(tree: ast.Module, name: str) -> set[str]:
    """The attributes of a name that a module reads."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    }


def imported_names(file: Path, root: Path) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Every module that a file imports, wherever in it, and the names that it reads from there.

    Args:
        file: the importing file.
        root: the folder below which the file's own name starts, for relative imports.
    """
    tree = parsed(file)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split(".")), attributes(tree, alias.asname or alias.name)
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(root).parts[: -node.level] if node.level else ()
            yield package + tuple((node.module or "").split(".") if node.module else ()), {a.name for a in node.names}


def dependencies(file: Path, roots: tuple[Path, ...]) -> set[Path]:
    """The file and all below the roots that it needs, directly or not.

    An `__init__.py` re-exports and does nothing: of it a module needs only where the names come from that it reads.
    """
    done: set[Path] = set()

    def visit(file: Path, names: set[str] | None) -> None:
        if names is None:
            if file in done:
                return
            done.add(file)
        root = next(root for root in roots if file.is_relative_to(root))
        for parts, read in imported_names(file, root):
            if names is None or names & read:
                follow(parts, read if names is None else names & read)

    def follow(parts: tuple[str, ...], read: set[str]) -> None:
        modules = {name: file_of(roots, (*parts, name)) for name in read}
        for module in filter(None, modules.values()):
            visit(module, None)
        home = file_of(roots, parts)
        if home is not None:
            own = {name for name, module in modules.items() if module is None}
            visit(home, own if home.name == "__init__.py" else None)

    visit(file, None)
    return done


def digest_of_sources(file: Path, roots: tuple[Path, ...]) -> str:
    """A digest that changes with what a file or one of its dependencies does, and not with what they say."""
    digest = hashlib.sha256()
    for each in sorted(dependencies(file, roots)):
        root = next(root for root in roots if each.is_relative_to(root))
        digest.update(f"{each.relative_to(root)}\n{ast.dump(parsed(each))}\n".encode())
    return digest.hexdigest()
