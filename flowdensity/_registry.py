"""The classes that files can hold. Each registers itself where it is defined.

A file stores an object as the name of its class and the object's parts. By default the parts are the dataclass fields, and their
annotations say what a part may be: nothing else is made of a file.
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
    """How objects of a class are taken apart and made.

    Attributes:
        cls: the class.
        fields: names and annotations of the parts.
        make: makes an object of its parts.
        parts: the parts of an object; None takes its attributes.
    """

    cls: type
    fields: Mapping[str, Any]
    make: Callable[..., Any]
    parts: Callable[[Any], dict[str, Any]] | None = None


KINDS: dict[str, Kind] = {}
"""The registered kinds by their names in files."""
NAMES: dict[type, str] = {}
"""The names of classes in files."""


def register(name: str, kind: Kind) -> None:
    """Let files hold objects of a kind, under a name."""
    KINDS[name] = kind
    NAMES[kind.cls] = name


def savable(cls: Class) -> Class:
    """Class decorator: let files hold objects of an equinox module or a frozen dataclass, by its fields."""
    register(cls.__name__, kind_of(cls))
    return cls


def kind_of(cls: type) -> Kind:
    """How objects of a dataclass are saved: by their fields, as they are, since `__init__` would compute others."""
    return Kind(cls, {field.name: field.type for field in dataclasses.fields(cls)}, partial(_made, cls))


def _made(cls: type, /, **parts: Any) -> Any:
    made = object.__new__(cls)
    for name, part in parts.items():
        object.__setattr__(made, name, part)
    if hasattr(cls, "__check_init__"):
        made.__check_init__()
    return made


def conforms(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says; a number may stand for an array that is a scalar."""
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
