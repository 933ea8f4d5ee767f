"""Frozen dataclasses <-> JSON: every unknown, missing or ill-typed entry is an error."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from foreact.errors import UserError, did_you_mean, in_short
from foreact.files import parse_json, read_text

T = TypeVar("T")


def config_to_json(config: Any) -> Any:
    """A config dataclass as JSON values (dict, list, str, int, float, bool, None).

    A field with the metadata {"later": True} came after checkpoints of its class had been written.
    It is left out where it has its default, so that the files, and the hashes of their content, of
    those who never heard of it stay valid.

    Args:
        config: dataclass instance whose fields are plain values, tuples, mappings with string keys,
            paths or further dataclasses.

    Raises:
        UserError: a number is NaN or infinite, which JSON cannot hold.
        TypeError: a field holds anything else.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {
            f.name: getattr(config, f.name)
            for f in dataclasses.fields(config)
            if not (f.metadata.get("later") and getattr(config, f.name) == f.default)
        }
        return {name: config_to_json(value) for name, value in values.items()}
    if isinstance(config, Mapping):
        return {str(k): config_to_json(v) for k, v in config.items()}
    if isinstance(config, tuple | list):
        return [config_to_json(v) for v in config]
    if isinstance(config, Path):
        return str(config)
    if isinstance(config, float) and not math.isfinite(config):
        raise UserError(
            f"A config holds the number {config}, which JSON cannot store; use None "
            "or a finite number."
        )
    if config is None or isinstance(config, bool | int | float | str):
        return config
    raise TypeError(f"a config field of type {type(config).__name__} has no JSON form")


def config_from_json(cls: type[T], raw: Any, *, where: str = "config", complete: bool = False) -> T:
    """The inverse of `config_to_json`.

    Args:
        cls: config dataclass. Field types may be bool, int, float, str, None, Path, Any, Literal,
            unions, tuples, Mapping[str, ...] and nested dataclasses.
        raw: what json.loads gave.
        where: name of the entry in error messages, such as the file.
        complete: also refuse an entry that is missing where the field has a default, unless it came
            later (see `config_to_json`). Used where a default of today must not be put in the place
            of a value of yesterday.

    Raises:
        UserError: the first unknown, missing or ill-typed entry, by its dotted name.
    """
    if not isinstance(raw, Mapping):
        raise UserError(f"{where} should be an object with named entries, found {_show(raw)}.")
    fields = {f.name: f for f in dataclasses.fields(cast(Any, cls)) if f.init}
    for key in raw:
        if key not in fields:
            raise UserError(f"{where} has an unknown entry '{key}'{did_you_mean(str(key), fields)}")
    for name, f in fields.items():
        optional = (
            f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        )
        if name not in raw and not (optional and (f.metadata.get("later") or not complete)):
            raise UserError(f"{where} lacks the entry '{name}'; add it.")
    hints = get_type_hints(cls)
    return cls(
        **{
            name: _parse(hints[name], value, f"{where}.{name}", complete)
            for name, value in raw.items()
        }
    )


def greatest_number(raw: Any) -> int:
    """The greatest whole number in JSON values."""
    if isinstance(raw, dict | list):
        values = raw.values() if isinstance(raw, dict) else raw
        return max(map(greatest_number, values), default=0)
    return raw if isinstance(raw, int) else 0


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: the file is missing, unreadable or no JSON.
    """
    try:
        return parse_json(read_text(path))
    except FileNotFoundError:
        raise UserError(f"The file {path} is missing.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"The file {path} is not readable JSON ({in_short(error)}); restore it from its source."
        ) from None


def _parse(kind: Any, value: Any, where: str, complete: bool) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if kind is None or kind is type(None):
        return value if value is None else _wrong(where, "null", value)
    if kind is Path:
        return Path(value) if isinstance(value, str) else _wrong(where, "a path in quotes", value)
    if kind is float:
        # JSON does not tell 1 from 1.0
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        return _wrong(where, "a number", value)
    if kind in (int, bool, str):
        if type(value) is kind:
            return value
        return _wrong(
            where, {int: "a whole number", bool: "true or false", str: "a text"}[kind], value
        )
    if origin is Literal:
        choices = get_args(kind)
        if any(type(value) is type(c) and value == c for c in choices):
            return value
        return _wrong(where, "one of " + ", ".join(map(repr, choices)), value)
    if origin in (Union, types.UnionType):
        return _parse_union(get_args(kind), value, where, complete)
    if origin is tuple:
        return _parse_tuple(get_args(kind), value, where, complete)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return _wrong(where, "an object with named entries", value)
        return {
            str(k): _parse(get_args(kind)[1], v, f"{where}.{k}", complete) for k, v in value.items()
        }
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return config_from_json(kind, value, where=where, complete=complete)
    raise TypeError(f"{where}: the field type {kind} has no JSON form")


def _parse_union(kinds: Sequence[Any], value: Any, where: str, complete: bool) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = [k for k in kinds if k is not type(None)]
    problem: UserError | None = None
    for kind in kinds:
        try:
            return _parse(kind, value, where, complete)
        except UserError as error:
            problem = problem or error
    if problem is not None and len(kinds) == 1:
        raise problem
    names = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
    return _wrong(where, names, value)


def _parse_tuple(kinds: Sequence[Any], value: Any, where: str, complete: bool) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        return _wrong(where, "a list", value)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = [kinds[0]] * len(value)
    if len(kinds) != len(value):
        return _wrong(where, f"a list of {len(kinds)}", value)
    return tuple(
        _parse(k, v, f"{where}[{i}]", complete)
        for i, (k, v) in enumerate(zip(kinds, value, strict=True))
    )


def _wrong(where: str, expected: str, found: Any) -> Any:
    raise UserError(f"{where} should be {expected}, found {_show(found)}.")


def _show(value: Any) -> str:
    is_json = value is None or isinstance(value, bool | int | float | str | list | dict)
    text = json.dumps(value, default=repr) if is_json else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
