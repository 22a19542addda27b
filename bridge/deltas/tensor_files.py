"""Safetensors files tensor by tensor: written from producers, read by name, never a whole file in memory.

The format (huggingface.co/docs/safetensors): the length of the header (8 bytes, little-endian), the header (JSON,
padded with spaces to a multiple of 8), then the tensors' bytes without gaps, row by row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bridge.models.files import weight_files
from commands.errors import UserError
from commands.store import write_atomically

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_ALIGNMENT = 8  # bytes


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: what the header says of it, and what makes it when its turn has come."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


def write_tensors(path: Path, entries: Iterable[Entry], metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file atomically, in the given order, with one tensor in memory at a time.

    Args:
        path: the file; folders above it are made.
        entries: the tensors; `make` is called once each, in order, and may return a tensor on any device.
        metadata: strings by name, kept in the header.

    Raises:
        ValueError: a name comes twice, a dtype has no code, or a producer gives another shape or dtype than announced.

    """
    listed = list(entries)
    header = _header(listed, metadata)

    def write(file: IO[bytes]) -> None:
        file.write(header)
        for entry in listed:
            file.write(_bytes(entry, entry.make()))

    write_atomically(path, write)


def _header(entries: Sequence[Entry], metadata: Mapping[str, str] | None) -> bytes:
    fields: dict[str, Mapping[str, object]] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for entry in entries:
        if entry.name in fields or entry.name == "__metadata__":
            raise ValueError(f"{entry.name} would be written twice")
        if entry.dtype not in _CODES:
            raise ValueError(f"{entry.name} is of dtype {entry.dtype}, which is not written")
        end = start + math.prod(entry.shape) * entry.dtype.itemsize
        fields[entry.name] = {
            "dtype": _CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(entry: Entry, tensor: Tensor) -> memoryview:
    if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
        raise ValueError(
            f"{entry.name}: announced {entry.dtype} {entry.shape}, made {tensor.dtype} {tuple(tensor.shape)}"
        )
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


@dataclass(frozen=True)
class _Place:
    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorFiles:
    """The tensors of one or several safetensors files by name; shapes and dtypes come from the headers alone.

    A file is opened for every read: one that stays mapped would keep all that was read of it in memory.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the headers.

        Raises:
            UserError: a file is missing or corrupted, has a dtype that is not read, or repeats another's tensor.

        """
        self.paths = tuple(paths)
        self.metadata: dict[str, str] = {}
        self._where: dict[str, _Place] = {}
        for path in self.paths:
            self._add(path)

    @classmethod
    def of_folder(cls, folder: Path) -> TensorFiles:
        """The weights of a model's folder, in one file or several; UserError as `weight_files`."""
        return cls(weight_files(folder))

    def renamed(self, stored: Mapping[str, str]) -> TensorFiles:
        """The same files with only these tensors, under new names, in this order: new name -> name in the file."""
        view = copy(self)
        view._where = {name: self._where[old] for name, old in stored.items()}
        return view

    def _add(self, path: Path) -> None:
        with _opened(path) as file:
            self.metadata |= file.metadata() or {}
            for name in file.offset_keys():
                part = file.get_slice(name)
                code = part.get_dtype()
                if code not in _DTYPES:
                    raise UserError(f"{path}: {name} is of dtype {code}, expected one of {', '.join(_DTYPES)}")
                if name in self._where:
                    raise UserError(f"{path} and {self._where[name].path.name} both hold {name}: save the model again")
                self._where[name] = _Place(path, name, tuple(part.get_shape()), _DTYPES[code])

    @property
    def names(self) -> tuple[str, ...]:
        """All names, file by file, in the order in which the tensors lie there."""
        return tuple(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def path(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._where[name].path

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._where[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Dtype in which a tensor is stored."""
        return self._where[name].dtype

    def read(self, name: str) -> Tensor:
        """One tensor, as stored, on the CPU."""
        place = self._where[name]
        with _opened(place.path) as file:
            return file.get_tensor(place.key)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): write or fetch it again") from error
