"""Reading of `torch.save` files, without running anything in them and with memory bounded by their size.

Such a file is a zip whose records are stored as they are: a pickle, which says what the file holds, and one record for
each tensor's storage. The pickle is interpreted here, since unpicklers call what it names and allocate what it asks
for. Tensors are mapped from the file: they take memory only while they are referenced.
"""

import pickletools
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

MAX_AXES = 64  # of a tensor in torch
PICKLE, BYTEORDER = "data.pkl", "byteorder"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a record in a zip: signature, lengths of its name and of what follows
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
TENSORS = (
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
)  # all begin with storage, offset, size, stride
PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")  # both begin with the tensor
# Other content of state dicts, whose values are not needed here and never made.
REBUILT = "torch._tensor._rebuild_from_type_v2"
HARMLESS = {
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "torch.device",
    "torch.serialization._get_layout",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
}
_MARK, _OPAQUE = object(), object()  # where a sequence begins on the stack; a value that is not needed
PUSHED = {  # opcodes whose argument is the value
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
CONSTANTS = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": lambda: _OPAQUE,
}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Record:
    """A storage in the file."""

    name: str
    begin: int  # bytes from the file's beginning
    num_bytes: int
    checksum: int  # CRC-32; 0 where the writer did not compute it


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the file."""

    record: Record
    dtype: torch.dtype
    offset: int  # elements from the record's beginning, as strides are
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """A class or function that the pickle names."""

    name: str


@dataclass(frozen=True)
class _Storage:
    record: Record
    dtype: torch.dtype


def open_torch_file(path: str | Path) -> object:
    """Reads the objects of a file: dicts, lists, tuples, numbers and texts as they are, tensors as `StoredTensor`.

    Raises:
        ValueError: it is truncated or damaged, compressed, names more than tensors need, or has tensors whose shapes
            do not fit their storages.
    """
    path = Path(path)
    try:
        records = _records(path)
        content = _read_record(path, records[PICKLE])
        if BYTEORDER in records and _read_record(path, records[BYTEORDER]) != sys.byteorder.encode():
            raise _unreadable(path, f"its numbers are not {sys.byteorder}-endian, as this machine's are")
        return _Pickle(content, records, path).value()
    except _Refusal:
        raise
    except Exception as error:  # a damaged file may raise anything in the zip and in the pickle
        raise _unreadable(path, "it is truncated, damaged, or another kind of zip file") from error


def read_tensors(path: str | Path, stored: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
    """Maps tensors of a file on the CPU; they must not be written to.

    Raises:
        ValueError: a record's bytes do not have its checksum.
    """
    if not stored:
        return {}
    path = Path(path)
    mapped = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    checked: set[Record] = set()
    tensors = {}
    for key, tensor in stored.items():
        record = tensor.record
        storage = mapped[record.begin : record.begin + record.num_bytes]
        if record not in checked:
            _check(path, record, torch.empty(0, dtype=torch.uint8).set_(storage).numpy())
            checked.add(record)
        tensors[key] = torch.empty(0, dtype=tensor.dtype).set_(storage, tensor.offset, tensor.shape, tensor.stride)
    return tensors


class _Refusal(ValueError):
    """An error whose message is already complete."""


def _unreadable(path: Path, reason: str) -> _Refusal:
    return _Refusal(f"{path} can't be read as a checkpoint: {reason}.")


def _records(path: Path) -> dict[str, Record]:
    """Records of the zip by their names without the archive's; each is uncompressed and inside the file."""
    num_bytes = path.stat().st_size
    records = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        infos = archive.infolist()
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
                raise _unreadable(
                    path,
                    f"its record {info.filename} is compressed or encrypted, which `torch.save` never does. Unpack "
                    "and save it again where you trust it",
                )
            file.seek(info.header_offset)
            signature, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            begin = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
            if signature != zipfile.stringFileHeader or begin + info.file_size > num_bytes:
                raise _unreadable(
                    path, f"its record {info.filename} is not inside the file, which is truncated or damaged"
                )
            name = info.filename.partition("/")[2] or info.filename
            if name in records:
                raise _unreadable(path, f"it has the record {info.filename} twice")
            records[name] = Record(info.filename, begin, info.file_size, info.CRC)
    return records


def _read_record(path: Path, record: Record) -> bytes:
    with path.open("rb") as file:
        file.seek(record.begin)
        content = file.read(record.num_bytes)
    _check(path, record, content)
    return content


def _check(path: Path, record: Record, content: object) -> None:
    if record.checksum and zlib.crc32(content) != record.checksum:
        raise _unreadable(
            path,
            f"its record {record.name} is damaged: its bytes do not have the checksum that was written. Download it "
            "again",
        )


class _Pickle:
    """Interpreter of the pickle in a file: nothing that it names is imported or called."""

    def __init__(self, content: bytes, records: Mapping[str, Record], path: Path) -> None:
        self.content, self.records, self.path = content, records, path
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}

    def value(self) -> object:
        for opcode, argument, _ in pickletools.genops(self.content):
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in PUSHED:
                self.stack.append(argument)
            elif opcode.name in CONSTANTS:
                self.stack.append(CONSTANTS[opcode.name]())
            elif opcode.name in TUPLES:
                self.stack.append(tuple(self._take(TUPLES[opcode.name])))
            elif action := getattr(self, f"_on_{opcode.name.lower()}", None):
                action(argument)
            elif opcode.name not in ("PROTO", "FRAME"):
                raise self._more_than_tensors(opcode.name)
        raise ValueError("The pickle has no end.")

    def _take(self, count: int) -> list[object]:
        if count > len(self.stack):
            raise ValueError("The pickle takes more values than it has.")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _take_to_mark(self) -> list[object]:
        begin = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        items = self.stack[begin + 1 :]
        del self.stack[begin:]
        return items

    def _on_pop(self, argument: None) -> None:
        self._take(1)

    def _on_dup(self, argument: None) -> None:
        self.stack.append(self.stack[-1])

    def _on_mark(self, argument: None) -> None:
        self.stack.append(_MARK)

    def _on_tuple(self, argument: None) -> None:
        self.stack.append(tuple(self._take_to_mark()))

    def _on_list(self, argument: None) -> None:
        self.stack.append(self._take_to_mark())

    def _on_frozenset(self, argument: None) -> None:
        self._take_to_mark()
        self.stack.append(_OPAQUE)

    def _on_dict(self, argument: None) -> None:
        items = self._take_to_mark()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _on_append(self, argument: None) -> None:
        (item,) = self._take(1)
        self._fill(list, [item])

    def _on_appends(self, argument: None) -> None:
        self._fill(list, self._take_to_mark())

    def _on_additems(self, argument: None) -> None:
        self._take_to_mark()  # of a set, which is opaque

    def _on_setitem(self, argument: None) -> None:
        self._fill(dict, self._take(2))

    def _on_setitems(self, argument: None) -> None:
        self._fill(dict, self._take_to_mark())

    def _fill(self, kind: type, items: list[object]) -> None:
        target = self.stack[-1]
        if target is _OPAQUE:
            return
        if type(target) is not kind:
            raise ValueError("The pickle adds items to something that is no container.")
        if kind is list:
            target.extend(items)
        else:
            target.update(zip(items[::2], items[1::2], strict=True))

    def _on_memoize(self, argument: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _on_put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def _on_get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    _on_binput = _on_long_binput = _on_put
    _on_binget = _on_long_binget = _on_get

    def _on_global(self, name: str) -> None:
        self.stack.append(self._named(*name.split(" ", 1)))

    def _on_stack_global(self, argument: None) -> None:
        self.stack.append(self._named(*self._take(2)))

    def _named(self, module: str, name: str) -> object:
        """Resolves a global: to the type of a storage, an element type, or its name."""
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if full in ("collections.OrderedDict", "torch.Size", REBUILT) or full in HARMLESS:
            return _Global(full)
        if module == "torch._utils" and name in (*TENSORS, *PARAMETERS):
            return _Global(full)
        raise self._more_than_tensors(full.removeprefix("builtins."))

    def _on_build(self, argument: None) -> None:
        self._take(1)  # attributes of what is below, such as the versions of modules on a state dict

    def _on_reduce(self, argument: None) -> None:
        called, arguments = self._take(2)
        if not isinstance(called, _Global) or not isinstance(arguments, tuple):
            raise ValueError("The pickle calls what can't be called.")
        self.stack.append(self._result(called.name, arguments))

    def _result(self, called: str, arguments: tuple[object, ...]) -> object:
        if called == REBUILT:  # of a tensor with attributes or of a class of its own
            inner, kind, inner_arguments = arguments[:3]
            if kind not in (_Global("torch.Tensor"), _Global("torch.nn.parameter.Parameter")):
                raise self._more_than_tensors(str(kind))
            return self._result(inner.name, inner_arguments)
        if called == "collections.OrderedDict" and not arguments:
            return {}
        if called == "torch.Size" and len(arguments) == 1 and isinstance(arguments[0], tuple):
            return arguments[0]
        if called in HARMLESS:
            return _OPAQUE
        name = called.rpartition(".")[2]
        if name in PARAMETERS:
            return arguments[0]
        if name in TENSORS:
            return self._tensor(*arguments[:4], dtype=arguments[6] if name == TENSORS[-1] else None)
        raise ValueError(f"The pickle calls {called} with unknown arguments.")

    def _on_binpersid(self, argument: None) -> None:
        ((kind, dtype, key, _, num_elements),) = self._take(1)
        record = self.records[f"data/{key}"]
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError("The pickle refers to something that is no storage.")
        if not _are_counts((num_elements,)) or num_elements * dtype.itemsize != record.num_bytes:
            raise _unreadable(
                self.path,
                f"its record {record.name} has {record.num_bytes} bytes, and should have {num_elements} numbers of "
                f"{dtype}",
            )
        self.stack.append(_Storage(record, dtype))

    def _tensor(
        self, storage: _Storage, offset: int, shape: tuple, stride: tuple, *, dtype: torch.dtype | None
    ) -> StoredTensor:
        dtype = storage.dtype if dtype is None else dtype
        available = storage.record.num_bytes // dtype.itemsize
        fits = len(shape) == len(stride) <= MAX_AXES and _are_counts((offset, *shape, *stride))
        if fits and prod(shape):
            last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
            fits = prod(shape) <= available and last < available
        if not fits:
            raise _unreadable(
                self.path,
                f"a tensor of the shape {shape}, strides {stride} and offset {offset} does not fit its storage of "
                f"{available} numbers, {storage.record.name}",
            )
        return StoredTensor(storage.record, dtype, offset, shape, stride)

    def _more_than_tensors(self, name: str) -> ValueError:
        return _Refusal(
            f"{self.path} holds more than tensors (`{name}`): loading it could run code, so it was not loaded. Ask "
            "its authors for safetensors."
        )


def _are_counts(numbers: tuple) -> bool:
    return all(type(number) is int and 0 <= number < 2**63 for number in numbers)
