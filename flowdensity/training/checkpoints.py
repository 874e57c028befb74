"""Checkpoints on disk, from which a fit resumes and ends with the weights of an uninterrupted fit."""

import hashlib
import os
import re
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .. import _container
from .._checks import check_path

SUFFIX = ".checkpoint"
"""Suffix of the files of a checkpoint."""
CHECKPOINT_VERSION = 3
"""Version of the contents of checkpoints. A fit that an older version began is not resumed."""


class Checkpoint(NamedTuple):
    """A folder with a file for each stage of one fit.

    Attributes:
        caller: name of the public function for errors.
        folder: folder of the files.
        digest: checksum of everything that the fit depends on.
    """

    caller: str
    folder: Path
    digest: str

    def narrowed(self, *inputs: Any) -> "Checkpoint":
        """The same folder for stages that also depend on `inputs`. Files with other inputs belong to another fit."""
        return self._replace(digest=digest_of((self.digest, *inputs)))

    def write(self, stage: str, header: dict[str, Any], tree: Any) -> None:
        """Replace the file of a stage atomically. `header` is stored as JSON; the leaves of `tree` are arrays and keys."""
        leaves = {str(number): _numbers(leaf) for number, leaf in enumerate(jax.tree.leaves(tree))}
        _container.write(self._file(stage), header | {"fit": self.digest}, leaves)

    def read(self, stage: str, like: Any) -> tuple[dict[str, Any], Any] | None:
        """Read the header and the tree of a stage, with the structure of `like`. None if the stage has no file yet.

        Raises:
            ValueError: if the file is damaged or belongs to another fit.
        """
        file = self._file(stage)
        if not file.exists():
            return None
        header, leaves = _container.read(self.caller, file, f"checkpoint = {_unused(self.folder)!r}")
        wanted, structure = jax.tree.flatten(like)
        if header.pop("fit", None) != self.digest or len(leaves) != len(wanted):
            raise _foreign(self.caller, self.folder)
        return header, structure.unflatten(
            [_like(leaf, leaves[str(number)]) for number, leaf in enumerate(wanted)],
        )

    def _file(self, stage: str) -> Path:
        return self.folder / (re.sub(r"\W+", "-", stage) + SUFFIX)


def open_checkpoint(caller: str, checkpoint: str | os.PathLike[str] | None, *inputs: Any) -> Checkpoint | None:
    """Open the checkpoint of a fit in a folder, which is created if it does not exist. None if no checkpoint is requested.

    Args:
        caller: name of the public function for errors.
        checkpoint: the folder.
        inputs: everything that the fit depends on.

    Raises:
        TypeError: if `checkpoint` is not a path.
        ValueError: if it is a file, or a folder with the checkpoint of another fit.
    """
    if checkpoint is None:
        return None
    check_path(caller, "checkpoint", checkpoint, "folder", fix="my-fit")
    folder = Path(checkpoint)
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"{caller} expected `checkpoint` as the path of a folder; {os.fspath(checkpoint)!r} is a file. "
            f"Fix: checkpoint = {_unused(folder)!r}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob(f".*{SUFFIX}.*"):
        partial.unlink()  # left by a process that was killed while writing
    opened = Checkpoint(caller, folder, digest_of((CHECKPOINT_VERSION, caller, *inputs)))
    if opened.read("fit", ()) is None:
        if any(folder.glob(f"*{SUFFIX}")):
            raise _foreign(caller, folder)
        opened.write("fit", {}, ())
    return opened


def digest_of(tree: Any) -> str:
    """Checksum of all arrays, keys, numbers and types in a tree."""
    leaves, structure = jax.tree.flatten(tree)
    # The memory address of an object without a name differs in the next process.
    digest = hashlib.sha256(_without_addresses(str(structure)).encode())
    for leaf in leaves:
        if isinstance(leaf, jax.Array | np.ndarray):
            array = _numbers(leaf)
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        else:
            digest.update(_without_addresses(repr(leaf)).encode())
    return digest.hexdigest()


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "", text)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> np.ndarray:
    array = np.asarray(jr.key_data(leaf) if _is_key(leaf) else leaf)
    # safetensors has no numpy form of bfloat16.
    return array.view(np.uint16) if array.dtype == jnp.bfloat16 else array


def _like(leaf: Any, array: np.ndarray) -> Any:
    if _is_key(leaf):
        return jr.wrap_key_data(jnp.asarray(array), impl=jr.key_impl(leaf))
    return jnp.asarray(array.view(jnp.bfloat16) if leaf.dtype == jnp.bfloat16 else array)


def _foreign(caller: str, folder: Path) -> ValueError:
    return ValueError(
        f"{caller} expected `checkpoint` as a new folder or the folder of this fit; {os.fspath(folder)!r} belongs to a fit "
        "with another key, other data or other options, or on another kind of machine. "
        f"Fix: checkpoint = {_unused(folder)!r}"
    )


def _unused(folder: Path) -> str:
    """The name of a folder that does not exist yet."""
    return next(name for number in count(2) if not os.path.exists(name := f"{folder}-{number}"))
