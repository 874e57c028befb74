"""Registry of classes that files can hold. Each class registers itself where it is defined.

A file stores an object as the name of its class and its parts. By default the parts are the dataclass fields. Their annotations
restrict the types of the parts, and only objects of these types are created from a file.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import jaxtyping

Class = TypeVar("Class", bound=type)


class Kind(NamedTuple):
    """Description of how objects of a class are taken apart and created.

    Attributes:
        cls: the class.
        fields: names and annotations of the parts.
        make: function that creates an object from its parts.
        parts: function that returns the parts of an object; None for its attributes.
    """

    cls: type
    fields: Mapping[str, Any]
    make: Callable[..., Any]
    parts: Callable[[Any], dict[str, Any]] | None = None


KINDS: dict[str, Kind] = {}
"""Registered kinds by their names in files."""
NAMES: dict[type, str] = {}
"""Names of classes in files."""


def register(name: str, kind: Kind) -> None:
    """Allow files to hold objects of a kind, under a name."""
    KINDS[name] = kind
    NAMES[kind.cls] = name


def savable(cls: Class) -> Class:
    """Class decorator that allows files to hold objects of an equinox module or a frozen dataclass, by their fields."""
    register(cls.__name__, kind_of(cls))
    return cls


def kind_of(cls: type) -> Kind:
    """Kind of a dataclass, whose objects are saved by their fields. `__init__` is not called, since it might change them."""
    return Kind(cls, {field.name: field.type for field in dataclasses.fields(cls)}, partial(_made, cls))


def _made(cls: type, /, **parts: Any) -> Any:
    made = object.__new__(cls)
    for name, part in parts.items():
        object.__setattr__(made, name, part)
    if hasattr(cls, "__check_init__"):
        made.__check_init__()
    return made


def conforms(value: Any, hint: Any) -> bool:
    """Whether a value conforms to an annotation. A number is accepted for a scalar array."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(conforms(value, each) for each in args)
    if origin is Literal:
        return any(value is each or (isinstance(value, str) and value == each) for each in args)
    if origin is tuple and args[-1:] == (...,):
        return isinstance(value, tuple) and all(conforms(item, args[0]) for item in value)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(args) and all(map(conforms, value, args))
    if origin is list:
        return isinstance(value, list) and all(conforms(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(conforms(item, args[1]) for item in value.values())
    if hint == Callable[..., Any]:
        return callable(value)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray) and hint.dim_str == "":
        return isinstance(value, hint) or (isinstance(value, Real) and not isinstance(value, bool))
    return isinstance(value, hint)
