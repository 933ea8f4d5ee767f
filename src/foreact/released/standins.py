"""Stand-ins for every global that a foreign pickle may name, and their plain values."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLAT = re.compile(r"[biufcSU][0-9]{1,9}")
"""numpy's codes of plain numbers and texts, such as f4; not of records such as "i4,O"."""


class _Sealed(type):
    """Classes that a pickle's BUILD step cannot alter."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise TypeError(f"{cls.__name__} is read-only")


class _Call:
    """A function that a pickle may call, without attributes to alter."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError("allowed functions are read-only")


class _Record(metaclass=_Sealed):
    """An object of an absent class: attributes in `__dict__`, no code."""

    def plain(self) -> Any:
        return {k: v for k, v in vars(self).items() if not k.startswith("__")}


class _ConfigContainer(_Record):
    """omegaconf's DictConfig or ListConfig; None or an interpolation may replace the content."""

    def plain(self) -> Any:
        return vars(self).get("_content")


class _ConfigNode(_Record):
    """One value of an omegaconf config."""

    def plain(self) -> Any:
        return vars(self).get("_val")


class _Metadata(_Record):
    """What omegaconf knows of a node; dropped."""

    def plain(self) -> Any:
        return None


class _BaseDim(_Record):
    """mup's InfDim: a side of a tensor at the base width, None where it does not grow."""

    def plain(self) -> Any:
        return vars(self).get("base_dim")


class _BaseShape(_Record):
    """mup's InfShape, a tuple of InfDim."""

    def __new__(cls, dims: tuple[_BaseDim, ...] = ()) -> _BaseShape:
        self = super().__new__(cls)
        vars(self)["dims"] = tuple(dims)
        return self

    def plain(self) -> Any:
        return vars(self)["dims"]


class _Path(_Record):
    """A pathlib path, pickled as its parts."""

    def __new__(cls, *parts: str) -> _Path:
        self = super().__new__(cls)
        vars(self)["parts"] = [str(p) for p in parts]
        return self

    def plain(self) -> Any:
        first, *rest = vars(self)["parts"] or ["."]
        return "/" + "/".join(rest) if first == "/" else "/".join([first, *rest])


class _DType(_Record):
    """numpy.dtype. Only flat numbers, since a forged structured dtype can crash numpy."""

    def __new__(cls, code: str, *_: Any) -> _DType:
        self = super().__new__(cls)
        vars(self)["code"] = code
        return self

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        vars(self)["order"] = state[1]

    def numpy(self) -> np.dtype:
        code, order = vars(self)["code"], vars(self).get("order", "|")
        if (
            not isinstance(code, str)
            or not FLAT.fullmatch(code)
            or order not in ("<", ">", "|", "=")
        ):
            raise ValueError(f"a numpy array of type {code}")
        return np.dtype(code).newbyteorder(order) if order in "<>" else np.dtype(code)


class _Array(_Record):
    """numpy.ndarray, rebuilt from its shape, type and bytes."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        array = np.frombuffer(data, dtype.numpy()).reshape(shape, order="F" if fortran else "C")
        vars(self)["array"] = array.copy()

    def plain(self) -> Any:
        return vars(self)["array"]


def _scalar(dtype: _DType, data: bytes) -> Any:
    return np.frombuffer(data, dtype.numpy(), count=1)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # the only one pickle itself writes, for bytes in protocol 2
        raise ValueError(f"bytes in encoding {encoding}")
    return text.encode("latin1")


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    tensor = storage.as_strided(tuple(size), tuple(stride), offset)  # checks the bounds itself
    if tensor.numel() > storage.numel():
        raise ValueError("a tensor larger than its data")
    return tensor


def _named_type(name: str) -> Any:
    """dill names the built-in types by strings, of Python 2 or 3."""
    names = {
        "IntType": int,
        "LongType": int,
        "FloatType": float,
        "StringType": str,
        "UnicodeType": str,
        "BooleanType": bool,
        "ListType": list,
        "DictType": dict,
        "TupleType": tuple,
        "NoneType": type(None),
    }
    known = {**names, **{t.__name__: t for t in names.values()}}
    if name not in known:
        raise ValueError(f"the type {name}")
    return known[name]


def plain(value: Any, _done: dict[int, tuple[Any, Any]] | None = None) -> Any:
    """Replace stand-ins in nested containers by their values; shared objects stay shared.

    Raises:
        RecursionError: a container holds itself.
    """
    done = {} if _done is None else _done
    if id(value) in done:  # also keeps a small file from unfolding into an endless tree
        return done[id(value)][1]
    if isinstance(value, _Record):
        result = plain(type(value).plain(value), done)
    elif isinstance(value, dict):
        result = {plain(k, done): plain(v, done) for k, v in value.items()}
    elif isinstance(value, list):
        result = [plain(v, done) for v in value]
    elif isinstance(value, tuple):
        result = tuple(plain(v, done) for v in value)
    elif isinstance(value, set | frozenset):
        result = {plain(v, done) for v in value}
    else:
        return None if isinstance(value, type | _Call) else value
    done[id(value)] = (value, result)  # the value too: its id must not be given to another object
    return result


_STORAGES = {
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
    "UntypedStorage": torch.uint8,
}
_DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
)
_BUILTINS: dict[str, Any] = {
    t.__name__: t
    for t in (dict, list, tuple, set, frozenset, int, float, complex, str, bool, object)
} | {"long": int, "unicode": str, "bytes": _Call(lambda: b"")}
_NODES = (
    "AnyNode",
    "StringNode",
    "IntegerNode",
    "FloatNode",
    "BooleanNode",
    "PathNode",
    "BytesNode",
    "EnumNode",
    "InterpolationResultNode",
)

GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("typing", "Any"): _Metadata,
    ("typing", "Union"): _Metadata,
    ("_codecs", "encode"): _Call(_encode),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch._utils", "_rebuild_tensor"): _Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(lambda data, *_: data),
    ("torch", "Size"): tuple,
    ("torch", "device"): _Call(lambda *parts: ":".join(map(str, parts))),
    ("argparse", "Namespace"): _Record,
    ("omegaconf.dictconfig", "DictConfig"): _ConfigContainer,
    ("omegaconf.listconfig", "ListConfig"): _ConfigContainer,
    ("omegaconf.base", "Metadata"): _Metadata,
    ("omegaconf.base", "ContainerMetadata"): _Metadata,
    **{("omegaconf.nodes", name): _ConfigNode for name in _NODES},
    ("mup.infshape", "InfDim"): _BaseDim,
    ("mup.infshape", "InfShape"): _BaseShape,
    # DeepSpeed's own objects in its checkpoints; of these only numbers matter to us.
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"): _Call(int),
    **{
        ("deepspeed.runtime.fp16.loss_scaler", name): _Record
        for name in ("LossScaler", "DynamicLossScaler")
    },
    ("deepspeed.utils.tensor_fragment", "fragment_address"): _Record,
    ("deepspeed.runtime.utils", "fragment_address"): _Record,
    **{
        (module, name): kind
        for module in ("builtins", "__builtin__")
        for name, kind in _BUILTINS.items()
    },
    **{
        (module, "_load_type"): _Call(_named_type) for module in ("dill._dill", "dill.dill", "dill")
    },
    **{
        ("torch", name): dtype
        for name, dtype in (_STORAGES | {n: getattr(torch, n) for n in _DTYPES}).items()
    },
    **{("torch.storage", name): dtype for name, dtype in _STORAGES.items()},
    **{
        (f"pathlib{sub}", name): _Path
        for sub in ("", "._local")
        for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    },
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    **{
        (f"{core}.multiarray", "_reconstruct"): _Call(lambda *_: _Array())
        for core in ("numpy.core", "numpy._core")
    },
    **{(f"{core}.multiarray", "scalar"): _Call(_scalar) for core in ("numpy.core", "numpy._core")},
}
