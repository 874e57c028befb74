"""One file of arrays and a JSON header: what densities are saved in, and checkpoints.

The format is safetensors, of which nothing is executed and every size is checked against the file before it is used; the header
is one of its metadata. A checksum over both finds whatever happened to the file on its way.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import safetensors
import safetensors.numpy

Tensors: TypeAlias = dict[str, np.ndarray]


ANEW = "fd.save(file, density)"
"""The line that makes up for a file that cannot be read."""


def write(file: str | os.PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write a file that is there whole or, if the process ends on the way, not at all: the old one is then still there.

    Args:
        file: where to; its folder exists.
        header: what JSON has a form for.
        tensors: arrays by name.
    """
    text = json.dumps(header, allow_nan=False)
    arrays = {name: np.require(array, requirements="C") for name, array in tensors.items()}
    content = safetensors.numpy.save(arrays, {"header": text, "sha256": _checksum(text, arrays)})
    target = Path(file)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read(caller: str, file: str | os.PathLike[str], fix: str = ANEW) -> tuple[dict[str, Any], Tensors]:
    """Header and arrays of a file.

    Args:
        caller: public function whose name the errors carry.
        file: what `write` has written.
        fix: the line that makes up for a damaged file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no such file, or damaged.
    """
    content = Path(file).read_bytes()
    try:
        tensors = safetensors.numpy.load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        text = metadata["header"]
        sound = metadata["sha256"] == _checksum(text, tensors)
        header = json.loads(text)
    # Whatever a file that nobody has checked yet brings about, it is the file that is at fault.
    except Exception as error:
        raise ValueError(
            f"{caller} expected a file that flowdensity has written; got {os.fspath(file)!r}, which is none, or damaged "
            f"({type(error).__name__}: {error}). Take another copy of it, or write it anew. Fix: {fix}"
        ) from error
    if not sound or not isinstance(header, dict):
        raise ValueError(
            f"{caller} expected a file as flowdensity wrote it; got {os.fspath(file)!r}, of which the checksum is wrong: it was "
            f"damaged or changed. Take another copy of it, or write it anew. Fix: {fix}"
        )
    return header, tensors


def _checksum(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
