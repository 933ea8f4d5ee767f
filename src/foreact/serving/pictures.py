"""Pictures from the network: decoded without executing anything, and limited in size."""

from __future__ import annotations

import base64
import binascii
import io
import math
import struct
import tempfile
import tokenize
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from foreact.errors import UserError
from foreact.released.pickles import read_torch_file

MAX_PIXELS = 16_000_000
"""Largest height x width accepted; several times that of the driving data sets' cameras."""


def decode_picture(text: str, where: str) -> np.ndarray:
    """A picture sent as text.

    Args:
        text: base64 of a PNG, a JPEG, an .npy file, or a torch.save'd tensor (in the layout of
            torch 1.6 and later), the last two uint8 (H, W, 3) RGB.
        where: what it is, for error messages.

    Returns:
        uint8 (H, W, 3), RGB, a copy of its own.

    Raises:
        UserError: it is none of these, damaged, too large, or asks to run something.
    """
    try:
        # Encoders that follow MIME end a line after 76 letters.
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{where} is not base64; send the base64 text of a picture.") from None
    if data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        picture = _read_image(data, where)
    elif data.startswith(b"\x93NUMPY"):
        picture = _read_npy(data, where)
    elif data.startswith(b"PK\x03\x04"):
        picture = _read_torch(data, where)
    else:
        raise UserError(
            f"{where} is of no known kind; send a PNG, a JPEG, an .npy file or a "
            "torch.save'd tensor."
        )
    return picture


def _read_image(data: bytes, where: str) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        _require_picture((image.height, image.width, 3), where)
        return np.array(image.convert("RGB"))
    except (
        OSError,
        SyntaxError,
        ValueError,
        AssertionError,
        Image.DecompressionBombError,
    ) as error:
        raise UserError(f"{where} is a damaged picture ({error}); send it again.") from None


def _read_npy(data: bytes, where: str) -> np.ndarray:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file)
    except (ValueError, KeyError, TypeError, tokenize.TokenError) as error:
        raise UserError(f"{where} is a damaged .npy file ({error}); send it again.") from None
    _require_picture(shape, where, str(dtype))
    body = data[file.tell() :]
    if len(body) != math.prod(shape):
        raise UserError(
            f"{where} should hold {math.prod(shape)} bytes of pixels, found "
            f"{len(body)}; send it again."
        )
    return np.frombuffer(body, np.uint8).reshape(shape, order="F" if fortran else "C").copy()


def _read_torch(data: bytes, where: str) -> np.ndarray:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise UserError(f"{where} is a damaged torch.save file ({error}); send it again.") from None
    if packed:  # a few bytes could unfold to any size; torch.save never packs
        raise UserError(
            f"{where} is a compressed torch.save file; send it as torch.save writes it."
        )
    # The restricted reader maps files, so the bytes become one.
    with tempfile.TemporaryDirectory(prefix="foreact-") as folder:
        file = Path(folder) / "picture.pt"
        file.write_bytes(data)
        try:
            found = read_torch_file(file)
        except UserError as error:
            raise UserError(str(error).replace(str(file), where)) from None
        if not isinstance(found, Tensor):
            raise UserError(
                f"{where} holds a {type(found).__name__}; send one uint8 tensor (H, W, 3)."
            )
        _require_picture(tuple(found.shape), where, str(found.dtype).removeprefix("torch."))
        return found.numpy().copy(order="C")


def _require_picture(shape: tuple[int, ...], where: str, dtype: str = "uint8") -> None:
    if dtype != "uint8" or len(shape) != 3 or shape[2] != 3 or min(shape) < 1:
        raise UserError(f"{where} should be uint8 (H, W, 3), found {dtype} {tuple(shape)}.")
    if shape[0] * shape[1] > MAX_PIXELS:
        raise UserError(
            f"{where} has {shape[0]} x {shape[1]} pixels, more than {MAX_PIXELS:,}; "
            "send a smaller one."
        )
