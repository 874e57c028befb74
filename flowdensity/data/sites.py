"""Named sites: how several named values make one vector."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import real_jax_array
from .._typing import Array, ArrayLike, Float
from .containers import read

Shapes: TypeAlias = tuple[tuple[int, ...], ...]


def split(vector: ArrayLike, shapes: Shapes) -> list[Any]:
    """Consecutive slices of the last axis, each in its shape behind the leading axes."""
    # numpy stays numpy: tables are checked in float64 whatever JAX's precision.
    xp = np if isinstance(vector, np.ndarray) else jnp
    # numpyro validates what it was handed, whatever holds it.
    vector = vector if isinstance(vector, np.ndarray | jax.Array) else np.asarray(vector)
    pieces = xp.split(vector, np.cumsum([prod(shape) for shape in shapes])[:-1], axis=-1)
    return [piece.reshape((*piece.shape[:-1], *shape)) for piece, shape in zip(pieces, shapes, strict=True)]


def join(pieces: Sequence[Any], shapes: Shapes) -> Any:
    """Undo `split`, for pieces with the same leading axes."""
    xp = np if all(isinstance(piece, np.ndarray) for piece in pieces) else jnp
    leading = [xp.shape(piece)[: xp.ndim(piece) - len(shape)] for piece, shape in zip(pieces, shapes, strict=True)]
    flat = [xp.reshape(piece, (*axes, prod(shape))) for piece, axes, shape in zip(pieces, leading, shapes, strict=True)]
    return xp.concatenate(flat, axis=-1)


class Sites(NamedTuple):
    """Names and shapes of the values that lie behind each other in one vector; it hashes.

    Attributes:
        names: of the sites, in their order.
        shapes: of one value of each.
    """

    names: tuple[str, ...]
    shapes: Shapes

    def pack(self, caller: str, values: Any) -> Float[Array, "*batch size"]:
        """The vector of some values, whose leading axes broadcast against each other.

        Args:
            caller: public function whose name the errors carry.
            values: a value of each site, shape `(*batch, *shape)`, in a dict or whatever else `read` takes names from; of draws
                in chains the leading axes are chains and draws.

        Raises:
            TypeError: if values are no real numbers, or have no names.
            ValueError: if a site is missing, too many, or of another shape.
        """
        columns = read(caller, "values", values, rows=False).columns
        if columns is None:
            raise TypeError(
                f"{caller} expected values of the sites {list(self.names)} by name; got {type(values).__name__}. "
                f"Fix: values = dict(zip({list(self.names)}, values))"
            )
        values = columns
        if set(values) != set(self.names):
            raise ValueError(
                f"{caller} expected values of the sites {list(self.names)}; got {sorted(map(str, values))}. "
                f"Fix: {{name: values[name] for name in {list(self.names)}}}"
            )
        arrays = {
            name: real_jax_array(caller, name, values[name], f"{name}=numpy.asarray({name}, float)")
            for name in self.names
        }
        leading = {}
        for (name, array), shape in zip(arrays.items(), self.shapes, strict=True):
            axes = array.ndim - len(shape)
            if axes < 0 or array.shape[axes:] != shape:
                raise ValueError(
                    f"{caller} expected {name!r} with shape {shape} behind its batch axes; got {array.shape}. "
                    f"Fix: put the axes of one value of {name!r} last"
                )
            leading[name] = array.shape[:axes]
        try:
            batch = jnp.broadcast_shapes(*leading.values())
        except ValueError as error:
            raise ValueError(
                f"{caller} expected values whose batch axes broadcast against each other; got {leading}. "
                "Fix: the same leading axes for each, or none"
            ) from error
        pieces = [jnp.broadcast_to(a, (*batch, *shape)) for a, shape in zip(arrays.values(), self.shapes, strict=True)]
        return join(pieces, self.shapes)

    def unpack(self, vector: Float[Array, "*batch size"]) -> dict[str, Array]:
        """The values in a vector, each of shape `(*batch, *shape)`."""
        return dict(zip(self.names, split(vector, self.shapes), strict=True))

    def site_of(self, column: int) -> str:
        """The site that a column of the vector belongs to."""
        ends = np.cumsum([prod(shape) for shape in self.shapes])
        return self.names[int(np.searchsorted(ends, column, side="right"))]
