"""Plain values out of a pickle, without unpickling it.

A pickle is a program: its opcodes may call any function there is. Here the opcodes are listed by
pickletools, which runs nothing, and followed by hand: those that build text, numbers, lists,
dictionaries and plain numpy arrays. Names of functions are compared, never imported or called.
Everything else is refused.
"""

from __future__ import annotations

import math
import pickletools
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
# What pickled arrays name. No other name is accepted.
KNOWN_NAMES = {
    **{(module, "_reconstruct"): "reconstruct" for module in ARRAY_MODULES},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    # protocol 5
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "frombuffer",
}


class _Mark:
    """Where a list of values begins on the stack."""


class _Name(str):
    """A known function or class: a word to compare with."""


class _Array:
    """An array whose content follows."""

    value: np.ndarray | None = None


class _Dtype:
    """An element type whose byte order follows."""

    def __init__(self, code: str):
        self.code = code


class _Refused(Exception):
    """The program does what a plain value never needs."""


def read_pickled_values(path: Path) -> Any:
    """The value in a pickle of text, numbers, lists, dictionaries and arrays of plain numbers.

    Text of Python 2 comes back as str, decoded as latin-1.

    Raises:
        ValueError: a truncated or damaged file, one that is no pickle, or one that builds anything
            else; nothing of it has run.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            # damaged text may hold escape sequences that Python means to abolish
            warnings.simplefilter("ignore", DeprecationWarning)
            return _follow(pickletools.genops(file))
    except _Refused as error:
        raise ValueError(
            f"{path} is a pickle that {error}, which plain data never needs and may run code; "
            f"download the file again from its source, or use the binary version"
        ) from None
    except DAMAGE as error:
        size = path.stat().st_size
        reason = str(error).rstrip(".").replace(". ", "; ") or type(error).__name__
        raise ValueError(
            f"{path} is truncated, damaged or no pickle ({size} bytes found; {reason}); "
            f"download it again"
        ) from None


# A damaged program may do anything that the little machine below does not expect, announce more
# bytes than there is memory, and hold itself.
DAMAGE = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(MemoryError, RecursionError),
)


def _follow(program: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        at = max(i for i, value in enumerate(stack) if isinstance(value, _Mark))
        values = stack[at + 1 :]
        del stack[at:]
        return values

    def pop(count: int) -> list[Any]:
        if len(stack) < count:
            raise ValueError("a value is missing")
        values = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return values

    for opcode, argument, _ in program:
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            (result,) = stack
            return _finished(result)
        if name in CONSTANTS:
            stack.append(CONSTANTS[name]())
        elif name in LITERALS:
            stack.append(argument)
        elif name == "MARK":
            stack.append(_Mark())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name == "LIST":
            stack.append(pop_to_mark())
        elif name == "DICT":
            stack.append(_items(pop_to_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(pop(int(name[-1]))))
        elif name == "APPEND":
            _list(stack[-2]).append(pop(1)[0])
        elif name == "APPENDS":
            values = pop_to_mark()
            _list(stack[-1]).extend(values)
        elif name == "SETITEM":
            values = pop(2)
            _dict(stack[-1]).update(_items(values))
        elif name == "SETITEMS":
            values = pop_to_mark()
            _dict(stack[-1]).update(_items(values))
        elif name == "GLOBAL":
            stack.append(_name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(_name(*pop(2)))
        elif name == "REDUCE":
            function, arguments = pop(2)
            stack.append(_call(function, arguments))
        elif name == "BUILD":
            (state,) = pop(1)
            _build(stack[-1], state)
        else:
            raise _Refused(f"uses the opcode {name}")
    raise ValueError("it has no end")


def _finished(value: Any) -> Any:
    """The array, text, number, list or dictionary with arrays in place of their forerunners."""
    if isinstance(value, dict):
        return {_finished(key): _finished(each) for key, each in value.items()}
    if isinstance(value, (_Array, _Dtype, _Name)):
        if not isinstance(value, _Array) or value.value is None:
            raise ValueError("an array has no content")
        return value.value
    return value


CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
LITERALS = {
    *("INT", "LONG", "FLOAT", "STRING", "UNICODE", "BYTEARRAY8"),
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ValueError("it appends to what is no list")
    return value


def _dict(value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise ValueError("it sets an item of what is no dictionary")
    return value


def _items(values: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn. A key is a plain one: to look up another may take forever."""
    keys = values[::2]
    if not all(type(key) in (str, bytes, int) for key in keys):
        raise ValueError("a key of a dictionary is no text and no number")
    return dict(zip(keys, values[1::2], strict=True))


def _name(module: str, name: str) -> _Name:
    known = KNOWN_NAMES.get((module, name))
    if known is None:
        raise _Refused(f"names {module}.{name}")
    return _Name(known)


def _call(function: Any, arguments: Any) -> Any:
    """What the known functions would return, as a value of the classes above."""
    if function == "reconstruct" and arguments[0] == "ndarray":
        return _Array()
    if function == "dtype":
        if not re.fullmatch(r"[buif][0-9]{1,2}", arguments[0]):
            raise ValueError("an element type is no plain number")
        return _Dtype(arguments[0])
    if function == "frombuffer":
        content, dtype, shape, order = arguments
        if order not in ("C", "F"):
            raise ValueError("an array has an unknown order")
        made = _Array()
        _build(made, (1, shape, dtype, order == "F", content))
        return made
    if function == "encode" and arguments[1] in ("latin1", "latin-1"):
        return str.encode(arguments[0], "latin-1")
    raise _Refused("calls something")


def _build(target: Any, state: Any) -> None:
    """Give an array its shape, type and bytes, or a type its byte order."""
    if isinstance(target, _Dtype):
        if state[1] not in ("<", ">", "|", "=") or state[3] is not None or state[4] is not None:
            raise ValueError("an element type is no plain number")
        target.code = state[1] + target.code
        return
    if not isinstance(target, _Array):
        raise _Refused("gives a state to what is no array")
    _, shape, dtype, fortran, content = state
    if not isinstance(dtype, _Dtype):
        raise ValueError("an array holds no plain numbers")
    kind = np.dtype(dtype.code)
    if isinstance(content, str):
        content = content.encode("latin-1")
    if len(content) != math.prod(shape) * kind.itemsize:
        raise ValueError(
            f"an array of shape {list(shape)} needs {math.prod(shape) * kind.itemsize} bytes, "
            f"found {len(content)}"
        )
    target.value = np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
