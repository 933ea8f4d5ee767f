"""The restricted reader: what it rebuilds, and what it refuses."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foreact.errors import UserError
from foreact.released.pickles import read_pickle_bytes, read_torch_file, resolve_references

REFERENCE_FILE = (
    Path(__file__).parents[2] / "parity/goldens/uva/checkpoint_pusht/reference_format.ckpt"
)


class Runs:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def content() -> dict[str, Any]:
    base = torch.arange(12, dtype=torch.float32)
    return {
        "f32": base.view(3, 4).t(),
        "shares": base[2:5],
        "bf16": torch.linspace(-1, 1, 5).bfloat16(),
        "f16": torch.tensor([0.5]).half(),
        "i64": torch.tensor(7),
        "bool": torch.tensor([[True, False]]),
        "u8": torch.empty(0, 3, dtype=torch.uint8),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "ordered": collections.OrderedDict(a=1),
        "numpy": np.arange(6, dtype=np.float64).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        "scalar": np.float32(1.5),
        "plain": (None, True, 3, 2.5, "text", b"\x00\xff", b"", {1, 2}, 10**20),
        "size": torch.Size([2, 3]),
        "args": argparse.Namespace(lr=1e-4, path=Path("/a/b")),
        "dtype": torch.float16,
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b.detach())
    if isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and a.shape == b.shape and bool((a == b).all())
    return a == b


@pytest.mark.parametrize("new_zipfile", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_reads_what_torch_save_writes(tmp_path: Path, new_zipfile: bool, protocol: int) -> None:
    file, expected = tmp_path / "x.pt", content()
    torch.save(expected, file, pickle_protocol=protocol, _use_new_zipfile_serialization=new_zipfile)
    got = read_torch_file(file)
    assert set(got) == set(expected)
    assert got["args"] == {"lr": 1e-4, "path": "/a/b"}
    assert type(got["ordered"]) is dict
    for name in set(expected) - {"args"}:
        assert same(got[name], expected[name]), name
    assert got["f32"].untyped_storage().data_ptr() == got["shares"].untyped_storage().data_ptr()


def test_changing_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(1000)}, file)
    before = file.read_bytes()
    read_torch_file(file)["w"].fill_(3.0)
    assert file.read_bytes() == before
    assert read_torch_file(file)["w"].sum() == 0


@pytest.mark.parametrize(
    "function", [os.system, eval, torch.storage._load_from_bytes, getattr, datetime.date.today]
)
@pytest.mark.parametrize("new_zipfile", [True, False])
def test_refuses_calls_by_name(tmp_path: Path, function: Any, new_zipfile: bool) -> None:
    file, proof = tmp_path / "evil.ckpt", tmp_path / "proof"
    argument = f"touch {proof}" if function is os.system else "1"
    torch.save(
        {"a": torch.ones(1), "b": Runs(function, argument)},
        file,
        _use_new_zipfile_serialization=new_zipfile,
    )
    with pytest.raises(UserError, match=r"evil\.ckpt asks for '.*', which is not on the list"):
        read_torch_file(file)
    assert not proof.exists()


def test_refuses_a_dotted_way_through_an_allowed_module() -> None:
    # protocol 4 may ask for an attribute path inside a module
    evil = b"\x80\x04\x8c\x05torch\x8c\x10serialization.os\x93."
    with pytest.raises(UserError, match=r"'torch\.serialization\.os'"):
        read_pickle_bytes(evil, "the bytes")


@pytest.mark.parametrize(
    "name",
    [
        ("torch._utils", "_rebuild_tensor_v2"),
        ("omegaconf.nodes", "AnyNode"),
        ("collections", "OrderedDict"),
    ],
)
def test_allowed_objects_cannot_be_altered(name: tuple[str, str]) -> None:
    # GLOBAL name; BUILD with attributes (dict state), then with slots: (None, {"plain": 1})
    head = b"\x80\x02c" + f"{name[0]}\n{name[1]}\n".encode()
    for state in (b"}X\x05\x00\x00\x00plainK\x01s", b"N}X\x05\x00\x00\x00plainK\x01s\x86"):
        with pytest.raises(UserError, match="damaged"):
            read_pickle_bytes(head + state + b"b.", "the bytes")


def test_an_attribute_named_plain_is_only_data() -> None:
    entries = b"X\x05\x00\x00\x00plainK\x01X\x04\x00\x00\x00_valK\x07"
    node = b"\x80\x02comegaconf.nodes\nAnyNode\n)\x81}(" + entries + b"ub."
    assert read_pickle_bytes(node, "the bytes") == 7


def test_a_small_file_cannot_unfold_without_end() -> None:
    value: Any = []
    for _ in range(60):
        value = [value, value]
    got = read_pickle_bytes(pickle.dumps(value), "the bytes")
    assert got[0] is got[1]


def test_a_list_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(UserError, match="damaged"):
        read_pickle_bytes(pickle.dumps(value), "the bytes")


@pytest.mark.parametrize("new_zipfile", [True, False])
@pytest.mark.parametrize("keep", [0, 3, 40, 0.3, 0.9, -1])
def test_cut_short(tmp_path: Path, new_zipfile: bool, keep: float) -> None:
    file = tmp_path / "cut.ckpt"
    torch.save(
        {"w": torch.ones(500), "v": torch.ones(500)},
        file,
        _use_new_zipfile_serialization=new_zipfile,
    )
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(UserError, match=r"cut\.ckpt is cut short, damaged or no torch\.save file"):
        read_torch_file(file)


@pytest.mark.parametrize("text", [b"hello", b"PK\x03\x04nothing", b"\x89PNG\r\n"])
def test_other_files(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "other"
    file.write_bytes(text)
    with pytest.raises(UserError, match=r"no torch\.save file"):
        read_torch_file(file)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(UserError, match="There is no file"):
            read_torch_file(path)


def rewrite(source: Path, target: Path, change: dict[str, bytes]) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change.get(name, old.read(name)))


def test_a_tensor_that_reaches_beyond_its_data(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.ckpt", tmp_path / "bad.ckpt"
    torch.save({"w": torch.ones(200)}, good)
    with zipfile.ZipFile(good) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data/0")]
        short = archive.read(name)[:100]
    rewrite(good, bad, {name: short})
    with pytest.raises(UserError, match="does not hold 800 plain bytes"):
        read_torch_file(bad)


def test_a_tensor_larger_than_its_data(tmp_path: Path) -> None:
    file = tmp_path / "wide.ckpt"
    torch.save({"w": torch.ones(1).expand(10**9)}, file)
    with pytest.raises(UserError, match="larger than its data"):
        read_torch_file(file)


def test_structured_and_object_arrays_are_refused(tmp_path: Path) -> None:
    for array in (np.array([{}], dtype=object), np.zeros(1, dtype=[("a", "f4")])):
        with pytest.raises(UserError, match="damaged"):
            read_pickle_bytes(pickle.dumps(array), "the bytes")
    record = pickle.dumps(np.zeros(2, np.int32), protocol=2).replace(
        b"X\x02\x00\x00\x00i4", b"X\x05\x00\x00\x00i4,i4"
    )
    with pytest.raises(UserError, match="a numpy array of type i4,i4"):
        read_pickle_bytes(record, "the bytes")


def test_dill_names_of_types() -> None:
    # dill writes a built-in type as a call of its own look-up
    for name in ("int", "IntType", "StringType"):
        bytes_ = (
            b"\x80\x02cdill._dill\n_load_type\nX"
            + len(name).to_bytes(4, "little")
            + name.encode()
            + b"\x85R."
        )
        assert read_pickle_bytes(bytes_, "the bytes") is None
    with pytest.raises(UserError, match="CodeType"):
        read_pickle_bytes(
            b"\x80\x02cdill._dill\n_load_type\nX\x08\x00\x00\x00CodeType\x85R.", "the bytes"
        )
    with pytest.raises(UserError, match=r"'dill\._dill\._create_function'"):
        read_pickle_bytes(b"\x80\x02cdill._dill\n_create_function\n)R.", "the bytes")


def test_reads_the_reference_file() -> None:
    payload = read_torch_file(REFERENCE_FILE)
    assert payload["cfg"]["task"]["shape_meta"]["obs"]["image"]["shape"] == [3, 96, 96]
    assert {k: read_pickle_bytes(v, k) for k, v in payload["pickles"].items()} == {
        "_output_dir": "outputs/example",
        "global_step": 1234,
        "epoch": 7,
    }


def test_references_in_configs() -> None:
    config = {
        "task": {"name": "pusht", "shape": [3, 96], "deep": "${task.shape}"},
        "whole": "${task.shape}",
        "item": "${task.shape.1}",
        "again": "${whole}",
        "inside": "run_${task.name}_${task.shape.1}",
        "code": "${eval:'1 + 1'}",
        "unknown": "${task.none}",
        "nested": ["${task.deep}", 3],
    }
    got = resolve_references(config)
    assert got["whole"] == got["again"] == got["task"]["deep"] == got["nested"][0] == [3, 96]
    assert got["item"] == 96
    assert got["inside"] == "run_pusht_96"
    assert got["code"] == "${eval:'1 + 1'}"
    assert got["unknown"] == "${task.none}"
    with pytest.raises(UserError, match="b -> a -> b"):
        resolve_references({"a": "${b}", "b": "${a}"})
