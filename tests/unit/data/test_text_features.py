"""Features of instructions are computed once, and kept with the data and by the encoder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support.text_encoders import LengthEncoder

from foreact.data.stores.companion import accompanied
from foreact.data.stores.store import ZarrStore, open_store
from foreact.data.stores.text_features import TextFeatures, encode_texts, text_features
from foreact.data.stores.writer import StoreWriter
from foreact.errors import UserError
from foreact.types import StreamSpec

SPEC = StreamSpec(cameras={"cam": (4, 4)}, fps=10.0, has_text=True)
TEXTS = ("open it", "push", "open it", "close the lid")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOREACT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(path: Path, texts: Sequence[str] = TEXTS) -> ZarrStore:
    with StoreWriter(path, SPEC) as writer:
        for text in texts:
            writer.append({"cam": np.zeros((2, 4, 4, 3), np.uint8)}, text=text)
    return open_store(path)


def test_each_instruction_is_encoded_once_and_kept_in_the_store(
    tmp_path: Path, cache: Path
) -> None:
    store, encoder = written(tmp_path / "d.zarr"), LengthEncoder()
    found = text_features(store, encoder)
    assert found.texts == ("open it", "push", "close the lid")
    expected = [[7, ord("o"), ord("p")], [4, ord("p"), ord("u")], [13, ord("c"), ord("l")]]
    np.testing.assert_array_equal(found.features, np.array(expected, np.float32))
    assert (found.encoder, found.hash, found.dim) == ("length", encoder.hash, 3)
    assert encoder.asked == list(found.texts)
    files = [p.name for p in (tmp_path / "d.zarr" / "text").iterdir()]
    assert files == ["length-111111111111.safetensors"]
    again = text_features(open_store(tmp_path / "d.zarr"), encoder)
    np.testing.assert_array_equal(again.features, found.features)
    assert len(encoder.asked) == 3
    assert not cache.exists()


def test_another_encoder_has_another_file(tmp_path: Path) -> None:
    store, other = written(tmp_path / "d.zarr"), LengthEncoder("2")
    text_features(store, LengthEncoder())
    text_features(store, other)
    assert len(other.asked) == 3
    assert len(list((tmp_path / "d.zarr" / "text").iterdir())) == 2


def test_only_new_instructions_are_encoded(tmp_path: Path) -> None:
    path, encoder = tmp_path / "d.zarr", LengthEncoder()
    text_features(written(path, TEXTS[:2]), encoder)
    encoder.asked.clear()
    with StoreWriter(path, SPEC) as writer:
        writer.append({"cam": np.zeros((2, 4, 4, 3), np.uint8)}, text="wait")
    found = text_features(open_store(path), encoder)
    assert encoder.asked == ["wait"]
    assert found.texts == ("open it", "push", "wait")
    assert found.features[:, 0].tolist() == [7, 4, 4]
    assert found.features[2, 1] == ord("w")


def test_features_of_other_data_lie_in_the_companion(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "d.zarr"
    written(folder)
    archive = Path(shutil.make_archive(str(folder), "zip", folder))
    before, encoder = archive.read_bytes(), LengthEncoder()
    for store in (open_store(archive), accompanied(open_store(archive))):
        found = text_features(store, encoder)
        assert found.texts == ("open it", "push", "close the lid")
    assert len(encoder.asked) == 3
    assert archive.read_bytes() == before
    assert len(list(cache.rglob("text/length-*.safetensors"))) == 1


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    store, encoder = written(tmp_path / "d.zarr"), LengthEncoder()
    found = text_features(store, encoder)
    file = next((tmp_path / "d.zarr" / "text").iterdir())
    file.write_bytes(file.read_bytes()[:-3])
    np.testing.assert_array_equal(text_features(store, encoder).features, found.features)
    assert TextFeatures.load(file).texts == found.texts


def test_a_store_without_instructions_or_with_an_empty_one_is_refused(tmp_path: Path) -> None:
    encoder = LengthEncoder()
    with pytest.raises(UserError, match="has episodes with an empty instruction; say in words"):
        text_features(written(tmp_path / "d.zarr", ("open", " ")), encoder)
    plain = StreamSpec(cameras={"cam": (4, 4)}, fps=10.0)
    with StoreWriter(tmp_path / "p.zarr", plain) as writer:
        writer.append({"cam": np.zeros((2, 4, 4, 3), np.uint8)})
    with pytest.raises(UserError, match="has no 'text' per episode"):
        text_features(open_store(tmp_path / "p.zarr"), encoder)
    assert not encoder.asked


def test_an_encoder_that_yields_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, encoder = written(tmp_path / "d.zarr"), LengthEncoder()
    for rows, sentence in (
        (np.zeros((3, 2), np.float32), r"should yield features \(3, 3\), found \(3, 2\)"),
        (np.zeros((3, 3), np.float64), r"3 rows of finite float32, found float64 \(3, 3\)"),
        (np.full((3, 3), np.nan, np.float32), "3 rows of finite float32"),
    ):
        monkeypatch.setattr(encoder, "encode", lambda texts, rows=rows: rows)
        with pytest.raises(UserError, match=sentence):
            text_features(store, encoder)
    assert not (tmp_path / "d.zarr" / "text").exists()


def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    store = written(tmp_path / "d.zarr")
    (tmp_path / "d.zarr" / "text").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be kept in .*; give it the rights and run again"):
        text_features(store, LengthEncoder())


def test_many_texts_come_in_order() -> None:
    texts = [f"{i:03d}" for i in range(150)]
    found = encode_texts(LengthEncoder(), texts)
    assert found.texts == tuple(texts)
    assert found.features.shape == (150, 3)
    np.testing.assert_array_equal(found.features[:, 1], [ord(t[0]) for t in texts])
    assert found.numbers(["149", "x", "000"]).tolist() == [149, -1, 0]


def test_what_is_no_file_of_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no whole file of text features"):
        TextFeatures.load(tmp_path / "none.safetensors")
