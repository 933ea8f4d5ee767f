"""The text tower of a CLIP, wherever it was found, as a folder that `clip:FOLDER` opens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from foreact.errors import UserError, in_short, room_or
from foreact.files import write_json
from foreact.text.clip import clip_from_state, clip_network
from foreact.text.words import CLIP_FILES, clip_words


def export_clip(state: Mapping[str, Tensor], vocabulary: Path, out: Path, where: str) -> None:
    """Write the text tower of a whole CLIP, with a vocabulary, as an encoder's folder.

    Args:
        state: tensors of the CLIP, see `foreact.text.clip.clip_from_state`.
        vocabulary: folder with vocab.json and merges.txt or tokenizer.json, as published.
        out: the new folder.
        where: what holds the tensors, for errors.

    Raises:
        UserError: the tensors are no CLIP, the vocabulary is not CLIP's, `out` exists, or the disk
            refuses; nothing is left of the attempt then.
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another folder for the text encoder.")
    tower = clip_from_state(state, where)
    clip_network(tower, where)
    clip_words(vocabulary)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tower.items()}
        (draft / "model.safetensors").write_bytes(save(whole))
        write_json(draft / "config.json", {"text_config": {"hidden_act": "quick_gelu"}})
        for name in CLIP_FILES:
            if (vocabulary / name).is_file():
                shutil.copyfile(vocabulary / name, draft / name)
        os.rename(draft, out)
    except OSError as error:
        raise UserError(
            f"The text encoder {out} could not be written ({in_short(error)}); "
            f"{room_or(error, 'give it the rights')} and run again."
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
