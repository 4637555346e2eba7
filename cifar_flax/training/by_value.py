"""Compares objects by value, so that equal trainers can share compiled programs.

A traced program is valid while everything that was read during tracing is the same. The
value of a class or function of the user therefore includes what its code reads: global
constants, variables of enclosing functions, and other code. A notebook in which a cell
changes a constant of a model gets a new program.
"""

import dataclasses
import enum
import functools
import inspect
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

_PLAIN = (bool, int, float, complex, str, bytes, enum.Enum, np.dtype, types.NoneType)

# Their code, and that of Python's own modules, reads nothing that changes in a process.
_LIBRARIES = ("cifar_flax", "flax", "jax", "jaxlib", "numpy", "optax")

# Functions that the dataclass decorator writes, and names that linen sets in a class.
_GENERATED = (
    *("__init__", "__eq__", "__hash__", "__repr__", "__setattr__", "__delattr__"),
    *("name", "parent", "scope"),
)


class _NoValueError(Exception):
    """An object may change, or is of an unknown kind."""


class ByValue:
    """A frozen dataclass that equals others of its class whose fields are equal.

    If the value of a field is not known, the object equals only itself.
    """

    @functools.cached_property
    def _value(self) -> Any:
        try:
            return type(self), _of_fields(self, set())
        except _NoValueError:
            return type(self), id(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByValue) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


def _value_of(item: Any, seen: set[int]) -> Any:
    """Returns something hashable that is equal for items of the same value.

    Args:
      item: any object.
      seen: ids of the classes and functions whose code is already part of the value.

    Raises:
      _NoValueError: the item has no value.
    """
    kind = type(item)
    if isinstance(item, _PLAIN):
        return kind, item
    if isinstance(item, tuple | frozenset):
        return kind, tuple(_value_of(one, seen) for one in item)
    if isinstance(item, Mapping):
        names = sorted(item, key=repr)
        return kind, tuple((name, _value_of(item[name], seen)) for name in names)
    if isinstance(item, functools.partial):
        return kind, _value_of((item.func, item.args, item.keywords), seen)
    if isinstance(item, types.MethodType):
        return kind, _value_of((item.__func__, item.__self__), seen)
    if isinstance(item, type | types.FunctionType):
        return item, _of_code(item, seen)
    if isinstance(item, nn.Module) or _is_frozen(kind):
        return _value_of(kind, seen), _of_fields(item, seen)
    return _of_library(item, seen)


def _is_frozen(kind: Any) -> bool:
    found = getattr(kind, "__dataclass_params__", None)
    return found is not None and found.frozen


def _of_fields(item: Any, seen: set[int]) -> Any:
    """Returns the value of the fields of a dataclass or module."""
    names = {field.name for field in dataclasses.fields(item)}
    if not isinstance(item, nn.Module):
        for name in vars(item).keys() - names:
            kind = inspect.getattr_static(type(item), name, None)
            if not isinstance(kind, functools.cached_property):
                raise _NoValueError  # a subclass holds more than its fields
    pairs = ((name, getattr(item, name)) for name in sorted(names - {"parent"}))
    return tuple((name, _value_of(one, seen)) for name, one in pairs)


def _of_library(item: Any, seen: set[int]) -> Any:
    """Returns the value of an object such as a jitted function or a NumPy scalar."""
    try:
        hash(item)
    except TypeError as error:
        raise _NoValueError from error
    if not _is_library(type(item).__module__):
        raise _NoValueError
    inner = inspect.unwrap(item) if callable(item) else item
    return item if inner is item else (item, _value_of(inner, seen))


def _is_library(module: str) -> bool:
    root = module.split(".")[0]
    return root in _LIBRARIES or root in sys.stdlib_module_names


def _of_code(item: Any, seen: set[int]) -> Any:
    """Returns the value of what a class or function of the user reads."""
    if id(item) in seen:
        return ()
    seen.add(id(item))
    read = _of_class(item) if isinstance(item, type) else _of_function(item)
    known = (pair for pair in read if not isinstance(pair[1], types.ModuleType))
    return tuple((name, _value_of(one, seen)) for name, one in known)


def _of_class(item: type) -> Iterator[tuple[str, Any]]:
    """Yields the bases of a class of the user, and its attributes by name."""
    if _is_library(item.__module__):
        return
    yield "bases", item.__bases__
    is_data = dataclasses.is_dataclass(item)
    fields = [field.name for field in dataclasses.fields(item)] if is_data else []
    for name, found in sorted(vars(item).items()):
        if isinstance(found, property):
            found = found.fget
        elif isinstance(found, staticmethod | classmethod):
            found = found.__func__
        elif isinstance(found, functools.cached_property):
            found = found.func
        is_code = isinstance(found, type | types.FunctionType)
        if name in (*fields, *_GENERATED) or (name[0] == "_" and not is_code):
            continue
        yield name, found


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yields what a function of the user reads besides its arguments, by name."""
    if (inner := getattr(function, "__wrapped__", None)) is not None:
        yield "wrapped", inner
    if _is_library(function.__globals__.get("__name__", "")):
        return
    yield "defaults", (function.__defaults__ or (), function.__kwdefaults__ or {})
    cells: Iterable[Any] = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        yield name, cell.cell_contents
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [one for one in code.co_consts if isinstance(one, types.CodeType)]
    for name in sorted(names & function.__globals__.keys()):
        yield name, function.__globals__[name]
