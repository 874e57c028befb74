"""Griffe extension: the fields of an `equinox.Module` are the arguments of its constructor.

An equinox module is a dataclass without a decorator. Griffe does not see that, as it reads the source without
importing it.
"""

from typing import Any

import griffe

KIND = griffe.ParameterKind.positional_or_keyword


class EquinoxFields(griffe.Extension):
    """Give each module without an `__init__` of its own the one that equinox makes from its fields."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Visit every class of a loaded package."""
        self._visit(pkg)

    def _visit(self, parent: griffe.Module | griffe.Class) -> None:
        for member in list(parent.members.values()):
            if isinstance(member, griffe.Module | griffe.Class):
                self._visit(member)
        if isinstance(parent, griffe.Class) and "__init__" not in parent.members and _is_equinox(parent):
            parameters = griffe.Parameters(griffe.Parameter("self", kind=KIND), *_parameters(parent))
            parent.set_member("__init__", griffe.Function("__init__", parameters=parameters))


def _is_equinox(cls: griffe.Class) -> bool:
    if any(str(getattr(base, "canonical_path", base)) == "equinox.Module" for base in cls.bases):
        return True
    return any(isinstance(base, griffe.Class) and _is_equinox(base) for base in cls.mro())


def _parameters(cls: griffe.Class) -> list[griffe.Parameter]:
    return [
        griffe.Parameter(
            field.name,
            annotation=field.annotation,
            kind=KIND,
            default=_default(field.value),
        )
        for field in cls.members.values()
        if isinstance(field, griffe.Attribute) and field.annotation and "property" not in field.labels
        if not str(field.annotation).startswith("eqx.Abstract")
    ]


def _default(value: str | griffe.Expr | None) -> str | griffe.Expr | None:
    """The default of a field; `eqx.field(static=True, default=16)` carries it as an argument."""
    if not (isinstance(value, griffe.ExprCall) and value.canonical_path == "equinox.field"):
        return value
    arguments = {a.name: a.value for a in value.arguments if isinstance(a, griffe.ExprKeyword)}
    return arguments.get("default")
