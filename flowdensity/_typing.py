"""Array aliases used throughout the package.

Models, divergences and solvers operate on a *single* event and a *single* context. A state is a vector of shape ``(dim,)`` in
whitened coordinates. A context is a vector of shape ``(context_dim,)``, which is empty if there is no context. Only the
distributions have batch axes, and they apply `jax.vmap` to the other functions.
"""

from typing import TypeAlias

from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

Key: TypeAlias = PRNGKeyArray
Scalar: TypeAlias = Float[Array, ""]
ScalarLike: TypeAlias = Float[ArrayLike, ""]
State: TypeAlias = Float[Array, " dim"]
Context: TypeAlias = Float[Array, " context_dim"]
Hidden: TypeAlias = Float[Array, "*places width"]
Rows: TypeAlias = Float[Array, "rows dim"]
ContextRows: TypeAlias = Float[Array, "rows context_dim"]
Times: TypeAlias = Float[Array, " times"]

__all__ = [
    "Array",
    "ArrayLike",
    "Bool",
    "Context",
    "ContextRows",
    "Float",
    "Hidden",
    "Int",
    "Key",
    "Rows",
    "Scalar",
    "ScalarLike",
    "State",
    "Times",
]
