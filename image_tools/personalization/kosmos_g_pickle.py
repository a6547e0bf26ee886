"""The tensors of a training checkpoint, and nothing else that its pickle holds.

Checkpoints of fairseq keep settings beside the weights, as objects of classes that are not
installed, so ``torch.load(weights_only=True)`` refuses them. This reader walks the same pickle and
looks no name up: tensors are described by the few names in ``KNOWN``, and every other class or
function becomes an inert placeholder that takes whatever is done to it and does nothing. So no code
of the file runs, and nothing is imported. Tensors are read from the archive one by one, checked
against the sizes that the pickle claims.

    with TensorArchive(Path("checkpoint_final.pt"), section="model") as archive:
        weight = archive.read("aligner.encoder_query")
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from image_tools.errors import UnsafeWeights, WeightsMissing

__all__ = ["TensorArchive"]

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Everything that damaged or hostile pickles make the parser raise.
DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError)
DAMAGE = (*DAMAGE, AttributeError, OverflowError, RecursionError, UnicodeDecodeError)


class TensorArchive:
    """Read access to the tensors of one section of a checkpoint."""

    def __init__(self, path: Path, *, section: str) -> None:
        """Read what tensors there are; their numbers stay in the file.

        Args:
            path: a checkpoint in torch's zip format.
            section: key of the dictionary of tensors, ``model`` in fairseq's.

        Raises:
            WeightsMissing: the file is absent, damaged, or of an older format.
            UnsafeWeights: the section holds something else than tensors.
        """
        self.path = path
        if not path.is_file():
            raise WeightsMissing(
                f"The checkpoint '{path}' is not there. Expected a training checkpoint (.pt); "
                "correct the path."
            )
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise self._unreadable(error) from error
        try:
            self._prefix, self._entries = self._open(section)
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> TensorArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._entries[name].size

    def read(self, name: str) -> Tensor:
        """A tensor.

        Raises:
            WeightsMissing: its numbers are not in the file as the pickle claims.
        """
        entry = self._entries[name]
        try:
            info = self._zip.getinfo(f"{self._prefix}/data/{entry.storage.key}")
            numbers = entry.storage.numbers
            if info.file_size != numbers * entry.storage.dtype.itemsize:
                raise ValueError(f"'{name}' has {info.file_size} bytes for {numbers} numbers")
            if entry.last() >= numbers:
                raise ValueError(f"'{name}' reaches beyond its {numbers} numbers")
            content = bytearray(self._zip.read(info))
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise self._unreadable(error) from error
        if not content:
            return torch.zeros(entry.size, dtype=entry.storage.dtype)
        flat = torch.frombuffer(content, dtype=entry.storage.dtype)
        return flat.as_strided(entry.size, entry.stride, entry.offset).clone()

    def _open(self, section: str) -> tuple[str, dict[str, _Entry]]:
        """The archive's folder, and the section's tensors by name."""
        names = [n for n in self._zip.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(names) != 1:
            raise self._unreadable(ValueError("it is no archive of torch.save"))
        prefix = names[0].partition("/")[0]
        try:
            order = f"{prefix}/byteorder"
            if order in self._zip.namelist() and self._zip.read(order) != b"little":
                raise ValueError("its numbers are big-endian")
            content = _InertUnpickler(io.BytesIO(self._zip.read(names[0]))).load()
            found = dict(content[section])
        except DAMAGE as error:
            raise self._unreadable(error) from error
        for name, value in found.items():
            if not isinstance(name, str) or not isinstance(value, _Entry):
                raise UnsafeWeights(
                    f"'{name}' in '{section}' of '{self.path}' is no tensor, and looking at it "
                    "could run code. Expected tensors only in that part of a checkpoint; get the "
                    "file from its authors again."
                )
        return prefix, found

    def _unreadable(self, error: Exception) -> WeightsMissing:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return WeightsMissing(
            f"The checkpoint '{self.path}' cannot be read ({reason}). Expected a file of "
            "torch.save in its zip format (torch 1.6 or later) with a dictionary of tensors; "
            "download it again."
        )


@dataclass(frozen=True)
class _StorageType:
    """Stands for torch.FloatStorage and the like."""

    dtype: torch.dtype


@dataclass(frozen=True)
class _Storage:
    """Numbers that are still in the file."""

    dtype: torch.dtype
    key: str
    numbers: int


@dataclass(frozen=True)
class _Entry:
    """A tensor that is still in the file."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def last(self) -> int:
        """Index of the last number that the tensor takes; -1 for an empty one."""
        if 0 in self.size:
            return -1
        steps = zip(self.size, self.stride, strict=True)
        return self.offset + sum((rows - 1) * step for rows, step in steps)


class _Inert:
    """What a pickle makes of a name that is not known: it takes everything, and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        """Keep nothing."""

    def __setstate__(self, _: object) -> None:
        """Keep nothing."""

    def __setitem__(self, _: object, __: object) -> None:
        """Keep nothing."""

    def __call__(self, *_: object, **__: object) -> _Inert:
        return _Inert()

    def append(self, _: object) -> None:
        """Keep nothing."""

    def extend(self, _: object) -> None:
        """Keep nothing."""


def _rebuild_tensor(
    storage: object, offset: object, size: object, stride: object, *_: object
) -> _Entry | _Inert:
    """What ``torch._utils._rebuild_tensor_v2`` describes; inert where it describes no tensor."""
    if not isinstance(storage, _Storage) or not isinstance(offset, int) or offset < 0:
        return _Inert()
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
        return _Inert()
    if not all(isinstance(n, int) and n >= 0 for n in (*size, *stride)):
        return _Inert()
    return _Entry(storage, offset, size, stride)


def _rebuild_parameter(data: object, *_: object) -> object:
    """A parameter is the tensor that it holds."""
    return data if isinstance(data, _Entry) else _Inert()


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()},
}


class _InertUnpickler(pickle.Unpickler):
    """Walks a pickle without looking up any name."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        return KNOWN.get((module_name, global_name), _Inert)

    def persistent_load(self, pid: Any) -> _Storage | _Inert:
        if not isinstance(pid, tuple) or len(pid) != 5 or not isinstance(pid[1], _StorageType):
            return _Inert()
        _, kind, key, _, numbers = pid
        if not isinstance(key, str) or not isinstance(numbers, int):
            return _Inert()
        return _Storage(kind.dtype, key, numbers)
