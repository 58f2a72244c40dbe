"""Pickles of state dicts, interpreted without pickle: a dozen names, all of them placeholders of ours, and bounded work.

The opcodes are those of pickletools. Python's own unpickler would hash keys, copy mappings and nest tuples as a file asks for it, which
can take for ever before any name is looked up; this one has no value that takes more than its opcode.
"""

import pickle
import pickletools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.errors import UnsafePickle

STORAGE_DTYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip

OPCODES_LIMIT = 100_000
OPCODES_PER_TENSOR = 64
"""Most opcodes without tensors, and those that each tensor adds: torch writes about forty."""

STACK_LIMIT = 10_000
"""Most values that wait: torch sets a thousand items of a mapping at once, two values each."""

TUPLE_LIMIT = 16
"""Longest tuple: the arguments of a tensor are seven."""

DIMENSIONS_LIMIT = 8
"""Largest number of dimensions. No weight has more than two."""


class NotAStateDict(Exception):
    """A mapping has a key that is not a text, as that of an optimizer has."""


@dataclass(frozen=True, slots=True)
class StorageType:
    """Class of storages of one dtype."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Storage by its key in the archive."""

    key: str
    dtype: str


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """Tensor: a part of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: object, offset: object, shape: object, strides: object, *_: object) -> PickledTensor:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise pickle.UnpicklingError("a tensor is described without storage, shape or strides")
    numbers = (offset, *shape, *strides)
    if any(not isinstance(n, int) or not 0 <= n < 2**63 for n in numbers) or len(shape) != len(strides):
        raise pickle.UnpicklingError("a tensor's offset, shape or strides are not natural numbers")
    if len(shape) > DIMENSIONS_LIMIT:
        raise pickle.UnpicklingError(f"a tensor has {len(shape)} dimensions")
    assert isinstance(offset, int)
    return PickledTensor(storage, offset, shape, strides)


def _parameter(tensor: object, *_: object) -> object:
    return tensor


def _mapping() -> dict[str, object]:
    return {}


_CALLABLES: dict[str, Callable[..., object]] = {
    "collections OrderedDict": _mapping,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
}
_GLOBALS: dict[str, object] = {
    **_CALLABLES,
    **{f"torch {name}": StorageType(dtype) for name, dtype in STORAGE_DTYPES.items()},
}


def read_state(data: bytes) -> object:
    """Returns the value that a pickle describes, with placeholders for its tensors.

    Raises:
        UnsafePickle: The pickle names something other than tensors.
        NotAStateDict: A mapping has keys that are not texts.
        pickle.UnpicklingError, ValueError, TypeError, LookupError: It is damaged, or beyond the limits.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pickletools' own, for damaged strings
        return _Interpreter(len(data)).run(data)


class _Interpreter:
    """State of one pickle: the values that wait, those that were numbered, and the opcodes that are left."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._left = OPCODES_LIMIT

    def run(self, data: bytes) -> object:
        for opcode, argument, _ in pickletools.genops(data):
            self._left -= 1
            if self._left < 0 or len(self._stack) + len(self._marks) > STACK_LIMIT:
                raise pickle.UnpicklingError("it takes more steps or values than its tensors explain")
            if opcode.name in _CONSTANTS:
                self._stack.append(argument)
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            else:
                raise pickle.UnpicklingError(f"a state dict has no opcode {opcode.name}")
        return self._pop()

    def _pop(self) -> Any:
        return self._stack.pop()

    def _after_mark(self) -> Any:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def mark(self, _: object) -> None:
        self._marks.append(len(self._stack))

    def skip(self, _: object) -> None:
        pass

    def name(self, argument: str) -> None:
        found = _GLOBALS.get(argument)
        if found is None:
            raise UnsafePickle(
                f"the pickle would call {argument[:80].replace(' ', '.')}, which is not a tensor; it was not run.",
                "Load the file where you trust it and save its tensors as safetensors.",
            )
        self._stack.append(found)

    def name_from_stack(self, _: object) -> None:
        name, module = self._pop(), self._pop()
        self.name(f"{module} {name}")

    def put(self, argument: int | None) -> None:
        number = len(self._memo) if argument is None else argument
        if not 0 <= number <= self._size:
            raise pickle.UnpicklingError(f"memo number {number} in {self._size} bytes")
        self._memo[number] = self._stack[-1]

    def get(self, argument: int) -> None:
        self._stack.append(self._memo[argument])

    def empty_tuple(self, _: object) -> None:
        self._stack.append(())

    def empty_list(self, _: object) -> None:
        self._stack.append([])

    def empty_mapping(self, _: object) -> None:
        self._stack.append({})

    def new_list(self, _: object) -> None:
        self._stack.append(self._after_mark())

    def mapping(self, _: object) -> None:
        values = self._after_mark()
        self._stack.append({})
        self._set(values)

    def none(self, _: object) -> None:
        self._stack.append(None)

    def true(self, _: object) -> None:
        self._stack.append(True)

    def false(self, _: object) -> None:
        self._stack.append(False)

    def new_tuple(self, _: object) -> None:
        self._add_tuple(self._after_mark())

    def tuple1(self, _: object) -> None:
        self._add_tuple([self._pop()])

    def tuple2(self, _: object) -> None:
        self._add_tuple([self._pop(), self._pop()][::-1])

    def tuple3(self, _: object) -> None:
        self._add_tuple([self._pop(), self._pop(), self._pop()][::-1])

    def _add_tuple(self, values: Sequence[Any]) -> None:
        inner = (value for value in values if type(value) is tuple)
        if len(values) > TUPLE_LIMIT or any(type(number) is tuple for value in inner for number in value):
            raise pickle.UnpicklingError(f"a tuple of {len(values)} values is none of a tensor's")
        self._stack.append(tuple(values))

    def append(self, _: object) -> None:
        value = self._pop()
        self._of_type(list).append(value)

    def appends(self, _: object) -> None:
        values = self._after_mark()
        self._of_type(list).extend(values)

    def set_item(self, _: object) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def set_items(self, _: object) -> None:
        self._set(self._after_mark())

    def _set(self, values: Sequence[Any]) -> None:
        target = self._of_type(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is not str:
                raise NotAStateDict
            target[key] = value

    def _of_type(self, kind: type[Any]) -> Any:
        if type(self._stack[-1]) is not kind:
            raise pickle.UnpicklingError(f"items are added to a {type(self._stack[-1]).__name__}")
        return self._stack[-1]

    def call(self, _: object) -> None:
        arguments, function = self._pop(), self._pop()
        if function not in _CALLABLES.values() or type(arguments) is not tuple:
            raise pickle.UnpicklingError("something is called that cannot be")
        if function is _tensor:
            self._left += OPCODES_PER_TENSOR
        self._stack.append(function(*arguments))

    def attributes(self, _: object) -> None:
        """Leaves out attributes: torch gives a state dict one, the versions of its modules."""
        self._pop()
        self._of_type(dict)

    def storage(self, _: object) -> None:
        identity = self._pop()
        if not (isinstance(identity, tuple) and len(identity) == 5 and identity[0] == "storage"):
            raise pickle.UnpicklingError("a storage is named in an unknown way")
        kind, key = identity[1], identity[2]
        if not isinstance(kind, StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError("a storage has no known dtype or no name")
        self._stack.append(Storage(key, kind.dtype))


_CONSTANTS = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "STRING", "BINSTRING", "SHORT_BINSTRING",
})  # fmt: skip
_STEPS: dict[str, Callable[[_Interpreter, Any], None]] = {
    "PROTO": _Interpreter.skip, "FRAME": _Interpreter.skip, "STOP": _Interpreter.skip, "MARK": _Interpreter.mark,
    "GLOBAL": _Interpreter.name, "STACK_GLOBAL": _Interpreter.name_from_stack, "NONE": _Interpreter.none,
    "NEWTRUE": _Interpreter.true, "NEWFALSE": _Interpreter.false, "EMPTY_DICT": _Interpreter.empty_mapping,
    "EMPTY_LIST": _Interpreter.empty_list, "EMPTY_TUPLE": _Interpreter.empty_tuple, "LIST": _Interpreter.new_list, "DICT": _Interpreter.mapping, "TUPLE": _Interpreter.new_tuple,
    "TUPLE1": _Interpreter.tuple1, "TUPLE2": _Interpreter.tuple2, "TUPLE3": _Interpreter.tuple3,
    "APPEND": _Interpreter.append, "APPENDS": _Interpreter.appends, "SETITEM": _Interpreter.set_item,
    "SETITEMS": _Interpreter.set_items, "REDUCE": _Interpreter.call, "BUILD": _Interpreter.attributes,
    "BINPERSID": _Interpreter.storage,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Interpreter.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Interpreter.get),
}  # fmt: skip
