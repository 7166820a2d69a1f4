"""Tensors in a `.bin` file, which is a pickle in a zip archive: read as data, never run.

torch's `weights_only` reader is what keeps a pickle from running code. Before it, the file is held against the narrow
form that `torch.save` of a state dict has: uncompressed members, and no names but those from which tensors are rebuilt.
So a hostile file is turned away by name, before anything of it is unpacked.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from model.errors import CheckpointError

_MAX_PICKLE = 16 << 20  # the pickle of a 70B model's shard has under 1 MiB: it holds names and shapes only
_REBUILDERS = frozenset(
    {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"}
)
_STORAGES = frozenset(
    f"torch.{kind}Storage" for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Byte", "Bool")
)
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_DERIVED = (".inv_freq", ".position_ids")  # may be whole numbers


def read_pickled(file: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor, mapped from the file. Raises CheckpointError for anything but a dictionary of float tensors."""
    _check_form(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, EOFError, OSError) as error:
        raise CheckpointError(f"{file}: not a readable .bin file ({_first_line(error)})") from error
    except (MemoryError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{file}: not a readable .bin file ({type(error).__name__})") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file}: expected a dictionary of tensors, found {type(loaded).__name__}")
    for name, tensor in loaded.items():
        _check_tensor(file, name, tensor)
    return {name: tensor.detach() for name, tensor in loaded.items()}


def _check_form(file: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in members):
                raise CheckpointError(f"{file}: has compressed members, which torch.save never writes")
            pickles = [entry for entry in members if entry.filename.endswith("data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE:
                raise CheckpointError(f"{file}: not a readable .bin file (no data.pkl of a state dict)")
            _check_names(file, archive.read(pickles[0]))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{file}: not a readable .bin file ({_first_line(error)}); files of PyTorch before 1.6 are not read"
        ) from error


def _check_names(file: Path, data: bytes) -> None:
    """Protocol 2, which `torch.save` writes, names a class or function by GLOBAL only."""
    for opcode, argument in _opcodes(file, data):
        if opcode in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise CheckpointError(f"{file}: not a state dict (pickle opcode {opcode}); nothing was unpickled")
        if opcode == "GLOBAL":
            named = str(argument).replace(" ", ".")
            if named not in _REBUILDERS and named not in _STORAGES:
                raise CheckpointError(f"{file}: names {named!r}, which is no tensor; nothing was unpickled")


def _opcodes(file: Path, data: bytes) -> Iterator[tuple[str, object]]:
    try:
        for opcode, argument, _ in pickletools.genops(data):
            yield opcode.name, argument
    except ValueError:
        raise CheckpointError(f"{file}: not a readable .bin file (broken pickle)") from None


def _check_tensor(file: Path, name: object, tensor: object) -> None:
    if not isinstance(name, str):
        raise CheckpointError(f"{file}: a tensor's name is a {type(name).__name__}")
    if not isinstance(tensor, torch.Tensor) or tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise CheckpointError(f"{file}: {name} is no plain tensor")
    if tensor.dtype not in _FLOATS and not name.endswith(_DERIVED):
        raise CheckpointError(f"{file}: {name} is stored as {tensor.dtype}; expected floating-point weights")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{file}: {name} claims {tensor.numel()} numbers, more than are stored")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200] or type(error).__name__
