"""Objects in one line of text. Nothing is computed: arrays may be stacked or traced, and appear by their shapes."""

import dataclasses
from typing import Any

import equinox as eqx
import jax


def shown(module: Any, *more: str) -> str:
    """A module as its constructor is called, with its own fields and `more`; keys are left out.

    Unlike equinox's own display this one has the fields that are at their defaults.
    """
    fields = {field.name: getattr(module, field.name, None) for field in dataclasses.fields(module)}
    parts = [f"{name}={_value(value)}" for name, value in fields.items() if not _is_key(value)]
    return f"{type(module).__name__}({', '.join([*parts, *more])})"


def weights_of(tree: Any) -> str:
    """How many numbers are in the floating-point arrays of a pytree, in words."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf)]
    return f"{sum(leaf.size for leaf in leaves):,} weights"


def _value(value: Any) -> str:
    return eqx.tree_pformat(value, width=10_000) if eqx.is_array(value) else repr(value)


def _is_key(value: Any) -> bool:
    return eqx.is_array(value) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
