"""The released models by id, and the errors of the release's own
table told where the user meets them.
"""

from __future__ import annotations

import re

import pytest

from foreact.errors import UserError
from foreact.released.catalogue import Entry, catalogue

ENTRIES = catalogue().entries
BY_ID = {entry.id: entry for entry in ENTRIES}
DRIVING = [entry for entry in ENTRIES if entry.release.startswith("valeoai/")]
MODELS = [entry for entry in ENTRIES if entry.size is not None]


def test_what_there_is() -> None:
    assert len(BY_ID) == len(ENTRIES)
    assert len(DRIVING) == 31
    assert len(MODELS) == 27
    families = [
        (f"{family}-{size}", steps)
        for family in ("VaViM", "VaVAM")
        for size in "SB"
        for steps in (38, 77, 116)
    ]
    for title, steps in families:
        stages = {
            e.stage for e in MODELS if (e.title, e.pretraining_steps) == (title, steps * 1000)
        }
        assert stages == ({"pretrained", "finetuned"} if "VaViM" in title else {"action"})
    assert {entry.url for entry in DRIVING} == {
        "https://github.com/valeoai/VideoActionModel/releases/download/v1.0.0"
    }


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.id)
def test_ids_facts_and_files_agree(entry: Entry) -> None:
    assert entry.size is not None
    assert entry.pretraining_steps is not None
    assert entry.id == f"{entry.title.lower()}-{entry.pretraining_steps // 1000}k-{entry.stage}"
    assert entry.size.width == {"S": 768, "B": 1024, "L": 2048}[entry.title[-1]]
    assert entry.licence
    assert (entry.total_steps is None) == (entry.stage != "finetuned")
    stem = f"width_{entry.size.width}_pretrained_{entry.pretraining_steps // 1000}k"
    if entry.total_steps:
        stem += f"_total_{entry.total_steps // 1000}k"
    if entry.stage == "action":
        stem = f"VAM_{stem}"
    if entry.title.endswith("L"):
        for names in entry.candidates:
            assert list(names) == [
                f"{stem}_chunked.tar.gz.part_a{letter}" for letter in "abcd"[: len(names)]
            ]
    else:
        assert entry.candidates == ((f"{stem}.pt",), (f"{stem}.tar.gz",))


def test_the_large_models_come_in_parts() -> None:
    assert [len(names) for names in BY_ID["vavim-l-139k-finetuned"].candidates] == [3]
    assert [len(names) for names in BY_ID["vavam-l-139k-action"].candidates] == [4]
    assert BY_ID["vavim-l-139k-pretrained"].candidates == ()


def test_errors_of_the_table_are_told() -> None:
    noted = {entry.id: entry.note for entry in DRIVING if entry.note}
    assert set(noted) == {"vavim-l-139k-pretrained", "vavim-l-139k-finetuned", "vavam-s-77k-action"}
    assert "VaVAM-L archive" in str(noted["vavim-l-139k-pretrained"])
    assert "VAM_width_1024_pretrained_77k" in str(noted["vavam-s-77k-action"])
    assert "part_ac" in str(noted["vavim-l-139k-finetuned"])


def test_files_that_are_no_models() -> None:
    others = {entry.id: entry.candidates for entry in DRIVING if entry.size is None}
    assert others == {
        "llamagen-encoder": (("VQ_ds16_16384_llamagen_encoder.jit",),),
        "llamagen-decoder": (("VQ_ds16_16384_llamagen_decoder.jit",),),
        "opendv-metadata": (("opendv_vavam.tar.gz",),),
        "nuscenes-trajectories": (("nuscenes_vavam.tar.gz",),),
    }


def test_names_are_plain_and_belong_to_one_entry() -> None:
    names = [
        (entry.folder, name)
        for entry in ENTRIES
        for candidate in entry.candidates
        for name in candidate
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for _, name in names)
    assert len(set(names)) == len(names)


def test_the_other_two_systems_are_there() -> None:
    """Models, tokenizers and data sets of UVA and VOC, each with an address of its own."""
    drive = {
        "uva-authors-pusht": "1OduHcxfc2hqUYSccMQNf9g-vAt-q2UhF",
        "uva-authors-pusht-m": "1ZppZJyQdEdjhu8TIt4ddyaWy_mSdjoAZ",
        "uva-authors-libero10": "11c2VrmaRp48yw__5A5xpcu8EPzkexHSi",
        "uva-authors-umi": "1rUWtpXReULf8h42P80Go7GeTiZs3irFS",
    }
    for id, file in drive.items():
        (address,) = BY_ID[id].addresses.values()
        assert f"id={file}&" in address
    for entry in ENTRIES:
        names = {name for candidate in entry.candidates for name in candidate}
        assert set(entry.addresses) in (set(), names), entry.id
        assert all(address.startswith("https://") for address in entry.addresses.values())
    hub = "https://huggingface.co/"
    assert BY_ID["voc-walker-vq"].url == f"{hub}manantomar/video-occupancy-models/resolve/main"
    for id, folder in {
        "voc-cheetah-vq-latents": "cheetah_train/vq_latents",
        "voc-walker-vq-latents": "walker_train/vq_latents",
        "voc-cheetah-dino-latents": "cheetah_train/dino_latents",
    }.items():
        assert BY_ID[id].folder == folder
        assert len(BY_ID[id].candidates[0]) == 12
    assert "663c55d7" in BY_ID["beit-vqkd-dino"].candidates[0][0]


def test_an_unknown_id_is_corrected() -> None:
    assert catalogue().entry("vavim-b-139k-finetuned").title == "VaViM-B"
    with pytest.raises(
        UserError,
        match=r"nothing called 'vavim-b-139k-finetune'; did you mean 'vavim-b-139k-finetuned'\?",
    ):
        catalogue().entry("vavim-b-139k-finetune")
