"""File format of densities and checkpoints: arrays with a JSON header.

The format is safetensors. Nothing in it is executed, and every size is checked against the file before it is used. The header is
stored in the metadata. A checksum over header and arrays detects changes of the file.
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
"""Code that replaces a file that cannot be read, for fixes."""


def write(file: str | os.PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write a file atomically: if the process ends during the call, an existing file is left unchanged.

    Args:
        file: path of the file, in an existing folder.
        header: header that can be written as JSON.
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
    """Read the header and the arrays of a file.

    Args:
        caller: name of the public function for errors.
        file: path of a file that `write` has written.
        fix: code that replaces a damaged file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file has another format or is damaged.
    """
    content = Path(file).read_bytes()
    try:
        tensors = safetensors.numpy.load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        text = metadata["header"]
        sound = metadata["sha256"] == _checksum(text, tensors)
        header = json.loads(text)
    # The file has not been checked yet, so every error that its content causes is reported as a fault of the file.
    except Exception as error:
        raise ValueError(
            f"{caller} expected a file that flowdensity has written; got {os.fspath(file)!r}, which is not such a file or is "
            f"damaged ({type(error).__name__}: {error}). Use another copy of it, or save it again. Fix: {fix}"
        ) from error
    if not sound or not isinstance(header, dict):
        raise ValueError(
            f"{caller} expected a file as flowdensity wrote it; got {os.fspath(file)!r}, whose checksum is wrong: it was "
            f"damaged or changed. Use another copy of it, or save it again. Fix: {fix}"
        )
    return header, tensors


def _checksum(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
