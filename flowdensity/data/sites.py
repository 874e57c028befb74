"""Named sites: several named values packed into one vector."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import real_jax_array, reshaping
from .._registry import Kind, register
from .._typing import Array, ArrayLike, Float
from .containers import read

Shapes: TypeAlias = tuple[tuple[int, ...], ...]
"""Shapes of consecutive pieces of a vector."""


def split(vector: ArrayLike, shapes: Shapes) -> list[Any]:
    """Split the last axis into consecutive pieces, each reshaped to its shape after the leading axes."""
    # numpy arrays stay numpy arrays, because tables are checked in float64 whatever JAX's default dtype.
    xp = np if isinstance(vector, np.ndarray) else jnp
    # numpyro may validate values that are lists or numbers.
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
    """Names and shapes of the values that are concatenated into one vector; hashable.

    Attributes:
        names: names of the sites, in order.
        shapes: shape of one value of each site.
    """

    names: tuple[str, ...]
    shapes: Shapes

    @property
    def labels(self) -> list[str]:
        """Labels of all coordinates in arviz's notation, such as "mu" and "v[0]"."""
        return [
            f"{name}[{', '.join(map(str, index))}]" if index else name
            for name, shape in zip(self.names, self.shapes, strict=True)
            for index in np.ndindex(shape)
        ]

    def pack(self, caller: str, values: Any, argument: str = "values") -> Float[Array, "*batch size"]:
        """Concatenate values into vectors; their leading axes broadcast against each other.

        Args:
            caller: public function named in the errors.
            values: a value of each site, shape `(*batch, *shape)`, in a dict or another container with names that `read`
                accepts. Draws in chains keep separate leading axes for chains and draws.
            argument: name of the caller's argument.

        Raises:
            TypeError: if the values are not real numbers, or have no names.
            ValueError: if sites are missing or unknown, a value has the wrong shape, or the leading axes do not broadcast.
        """
        columns = read(caller, argument, values, rows=False).columns
        if columns is None:
            raise TypeError(
                f"{caller} expected values of the sites {list(self.names)} by name; got {type(values).__name__}. "
                f"Fix: {argument} = dict(zip({list(self.names)}, {argument}))"
            )
        values = columns
        if set(values) != set(self.names):
            raise ValueError(
                f"{caller} expected values of the sites {list(self.names)}; got {sorted(map(str, values))}. "
                f"Fix: {argument} = {self.code_of_all(argument, list(values))}"
            )
        arrays = {
            name: real_jax_array(
                caller,
                f"{argument}[{name!r}]",
                values[name],
                f"{argument} = {{**{argument}, {name!r}: {_zeros(shape)}}}",
            )
            for name, shape in zip(self.names, self.shapes, strict=True)
        }
        leading = {}
        for (name, array), shape in zip(arrays.items(), self.shapes, strict=True):
            axes = array.ndim - len(shape)
            if axes < 0 or array.shape[axes:] != shape:
                raise ValueError(
                    f"{caller} expected {name!r} with shape {shape} after its batch axes; got {array.shape}. "
                    f"Fix: {reshaping(f'{argument}[{name!r}]', array.shape, shape)}"
                )
            leading[name] = array.shape[:axes]
        try:
            batch = jnp.broadcast_shapes(*leading.values())
        except ValueError as error:
            raise ValueError(
                f"{caller} expected values whose batch axes broadcast against each other; got {leading}. "
                f"Fix: {argument} = {self._code_of_axes(argument, list(leading.values()))}"
            ) from error
        pieces = [jnp.broadcast_to(a, (*batch, *shape)) for a, shape in zip(arrays.values(), self.shapes, strict=True)]
        return join(pieces, self.shapes)

    def code_of_all(self, argument: str, given: list[str]) -> str:
        """Code for a dict with the right names; unknown names replace the missing names if their numbers match."""
        missing, over = [n for n in self.names if n not in given], [n for n in given if n not in self.names]
        instead = dict(zip(missing, over, strict=True)) if len(missing) == len(over) else {}
        if not missing:
            return f"{{name: {argument}[name] for name in {list(self.names)}}}"
        entries = [
            f"{name!r}: {argument}[{instead.get(name, name)!r}]"
            if name in given or name in instead
            else f"{name!r}: {_zeros(shape)}"
            for name, shape in zip(self.names, self.shapes, strict=True)
        ]
        return f"{{{', '.join(entries)}}}"

    def _code_of_axes(self, argument: str, leading: list[tuple[int, ...]]) -> str:
        """Code that makes batch axes broadcast.

        It truncates them to a common length if no site has more than one, and otherwise gives each site its own axes.
        """
        if max(map(len, leading)) < 2:
            least = min(axes[0] for axes in leading if axes and axes[0] != 1)
            entries = [
                f"{name!r}: jax.numpy.asarray({argument}[{name!r}])"
                + (f"[:{least}]" if axes and axes[0] > least else "")
                for name, axes in zip(self.names, leading, strict=True)
            ]
            return f"{{{', '.join(entries)}}}"
        entries = []
        for i, (name, shape) in enumerate(zip(self.names, self.shapes, strict=True)):
            axes = (*leading[i], *(1,) * sum(map(len, leading[i + 1 :])), *shape)
            entries.append(f"{name!r}: jax.numpy.reshape({argument}[{name!r}], {axes})")
        return f"{{{', '.join(entries)}}}"

    def unpack(self, vector: Float[Array, "*batch size"]) -> dict[str, Array]:
        """Split vectors into a dict of values by name, each of shape `(*batch, *shape)`."""
        return dict(zip(self.names, split(vector, self.shapes), strict=True))

    def site_of(self, column: int) -> str:
        """Return the name of the site to which a column of the vector belongs."""
        ends = np.cumsum([prod(shape) for shape in self.shapes])
        return self.names[int(np.searchsorted(ends, column, side="right"))]


def _zeros(shape: tuple[int, ...]) -> str:
    """Code for a placeholder value of a shape."""
    return f"numpy.zeros({shape})" if shape else "0.0"


register("Sites", Kind(Sites, {"names": tuple[str, ...], "shapes": Shapes}, Sites))
