"""Decoding of the official CIFAR files, binary and Python version.

The Python version is pickled, and a pickle can call any function that it names. Here a
pickle can name only what the official files name, and these names give stand-ins: no
NumPy code runs until the bytes of an array have been checked.
"""

import io
import pickle
import reprlib
from typing import Any

import numpy as np

from cifar_flax.data.cifar import PIXELS, Cifar, Labels, Layout
from cifar_flax.errors import UserError

# Images uint8 [N, 32, 32, 3], and labels uint8 [N] by feature.
Batch = tuple[np.ndarray, dict[str, np.ndarray]]


def read_batch(cifar: Cifar, layout: Layout, where: str, content: bytes) -> Batch:
    """Decodes a batch file.

    Args:
      cifar: the data set.
      layout: the version of its archive.
      where: name of the file, for error messages.
      content: the file's bytes.

    Returns:
      Images and labels of each kind, in the file's order.

    Raises:
      UserError: the content does not have the format of the official files.
    """
    if layout.pickled:
        return _read_pickled(cifar, where, content)
    count, rest = divmod(len(content), cifar.record)
    if rest or not count:
        raise UserError(
            f"{where} has {len(content)} bytes, which is not a whole number of records "
            f"of {cifar.record}; it is damaged, get the archive again"
        )
    records = np.frombuffer(content, np.uint8).reshape(count, cifar.record)
    labels = {}
    for column, kind in enumerate(cifar.labels):
        values = labels[kind.feature] = records[:, column].copy()
        if values.max() >= kind.num_classes:
            raise _bad_label(where, kind, int(values.max()))
    return _images(records[:, len(cifar.labels) :]), labels


def read_class_names(
    kind: Labels, layout: Layout, where: str, content: bytes
) -> tuple[str, ...]:
    """Decodes the class names of one kind of label; see ``read_batch``."""
    names: Any
    if layout.pickled:
        names = _unpickle(where, content).get(kind.names_key)
    else:
        names = [line for line in content.split(b"\n") if line.strip()]
    if not isinstance(names, list) or len(names) != kind.num_classes:
        raise UserError(f"{where} does not hold {kind.num_classes} class names")
    try:
        # A pickle may hold half a character, which is not text either.
        contents = [n.encode() if isinstance(n, str) else n for n in names]
        return tuple(content.decode().strip() for content in contents)
    except (UnicodeError, AttributeError) as error:
        raise UserError(f"{where}: class names are not text ({error})") from error


def _images(planes: np.ndarray) -> np.ndarray:
    """Converts colour planes [N, 3072] to images uint8 [N, 32, 32, 3]."""
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _bad_label(where: str, kind: Labels, label: object) -> UserError:
    shown = label if type(label) is int and abs(label) < 10**9 else type(label).__name__
    return UserError(
        f"{where} has the label {shown}; {kind.key} are whole numbers from 0 to "
        f"{kind.num_classes - 1}"
    )


def _read_pickled(cifar: Cifar, where: str, content: bytes) -> Batch:
    batch = _unpickle(where, content)
    planes = _planes(where, batch.get("data"))
    labels = {}
    for kind in cifar.labels:
        values = batch.get(kind.key)
        if not isinstance(values, list) or len(values) != len(planes):
            raise UserError(
                f"{where} has no list of {len(planes)} {kind.key}, one for each image"
            )
        for label in values:
            if type(label) is not int or not 0 <= label < kind.num_classes:
                raise _bad_label(where, kind, label)
        labels[kind.feature] = np.array(values, np.uint8)
    return _images(planes), labels


def _planes(where: str, array: object) -> np.ndarray:
    """Checks a pickled array and returns its colour planes, uint8 [N, 3072]."""
    try:
        _, shape, dtype, fortran, content = array.state  # type: ignore[attr-defined]
        count, width = shape
        valid = (
            dtype.code in ("u1", b"u1")
            and type(count) is int
            and count > 0
            and width == PIXELS
            and isinstance(content, bytes)
            and len(content) == count * width
        )
    except (AttributeError, TypeError, ValueError):  # not an array, or another state
        valid = False
    if not valid:
        raise UserError(f"{where}: data is not an array of bytes [N, {PIXELS}]")
    planes = np.frombuffer(content, np.uint8)
    return planes.reshape(count, width, order="F" if fortran else "C")


class _Array:
    """Replaces a pickled ndarray; keeps the state that NumPy would get."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Dtype:
    """Replaces a pickled dtype; keeps its code, such as 'u1'."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass  # byte order and alignment, which bytes do not have


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    # Python 3 writes bytes in this way in pickles that Python 2 can read.
    if encoding != "latin1":
        raise ValueError(f"encoding {reprlib.repr(encoding)}")
    return text.encode("latin1")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _TextDict(dict):
    """Takes only texts as keys, since hashing tuples of tuples may take forever."""

    def __setitem__(self, key: object, value: object) -> None:
        if not isinstance(key, (str, bytes)):
            raise pickle.UnpicklingError("a key is not text")
        super().__setitem__(key, value)


_Python: Any = pickle._Unpickler  # mypy knows only the C version


class _Unpickler(_Python):
    """Unpickles in Python, because the C version allocates memory for any memo index.

    Sets and buffers are not needed. Only a stand-in may have a state.
    """

    dispatch = _Python.dispatch.copy()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise UserError(
                f"names {f'{module}.{name}'[:100]}, which no CIFAR file needs; "
                f"refused, since it could run a program"
            )
        return _STAND_INS[module, name]

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append(_TextDict())
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][key] = value

    def _load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_Array, _Dtype)):
            raise pickle.UnpicklingError("a state for an object that has none")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.EMPTY_DICT[0]] = lambda self: self.append(_TextDict())
    dispatch[pickle.DICT[0]] = _load_dict
    dispatch[pickle.BUILD[0]] = _load_build
    for code in (pickle.EMPTY_SET, pickle.FROZENSET, pickle.BYTEARRAY8):
        del dispatch[code[0]]


def _unpickle(where: str, content: bytes) -> dict[str, Any]:
    """Returns the dictionary in a pickle, with its keys as text."""
    try:
        # Python 2 wrote the official files: their text comes as bytes.
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except UserError as error:
        raise UserError(f"{where} {error}") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(
            f"{where} is damaged ({type(error).__name__}: {str(error)[:100]}); get the "
            f"archive again"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{where} does not hold a dictionary, as CIFAR's files do")
    return {
        key.decode("latin1") if isinstance(key, bytes) else key: item
        for key, item in value.items()
    }
