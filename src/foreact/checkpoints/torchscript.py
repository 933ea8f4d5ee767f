"""The tokenizer VaViM was released with: LlamaGen's encoder and decoder as TorchScript files.

    VQ_ds16_16384_llamagen_encoder.jit   float (N, 3, H, W) in [-1, 1]  -> integer (N, H/16, W/16)
    VQ_ds16_16384_llamagen_decoder.jit   integer (N, H/16, W/16)   -> float (N, 3, H, W)

Such a file cannot run Python as a pickle can, but it is a program, whose operations may write
files: open only those whose source you trust.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from foreact.checkpoints.manifest import sha256_of
from foreact.errors import UserError
from foreact.tokenizers.vq import require_tokens


class TorchScriptTokenizer(nn.Module):
    """Two TorchScript files as one tokenizer; meets `foreact.types.Tokenizer`.

    What the files return is checked, since nothing in them says which is which or what they expect.

    Args:
        encoder: file of the encoder.
        decoder: file of the decoder; None where only tokens are wanted.
        vocab: size of the codebook.
        stride: pixels per token along either axis.
        device: where to run.

    Attributes:
        hash: content hash of the encoder's file, "sha256:..."; it names the tokens, which the
            decoder has no part in.

    Raises:
        UserError: a file is missing or no TorchScript.
    """

    vocab: int | None

    def __init__(
        self,
        encoder: Path,
        decoder: Path | None = None,
        *,
        vocab: int = 16384,
        stride: int = 16,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.vocab = self._vocab = vocab
        self.stride = stride
        self.files = {
            "encoder": Path(encoder),
            "decoder": None if decoder is None else Path(decoder),
        }
        self.encoder = open_script(Path(encoder), device)
        self.decoder = None if decoder is None else open_script(Path(decoder), device)
        self.hash = "sha256:" + sha256_of(Path(encoder))
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, video: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """Tokens of pictures.

        Args:
            video: float (B, T, 3, H, W) in [-1, 1]; the released files were made for 288 x 512.
            rng: unused: nothing is drawn.

        Returns:
            int64 (B, T, H / stride, W / stride) in 0..vocab-1.

        Raises:
            ValueError: `video` has another shape or dtype.
            UserError: the file fails on it, or returns anything but such tokens.
        """
        if not video.is_floating_point() or video.ndim != 5 or video.shape[2] != 3:
            raise ValueError(
                f"encode expects floats (B, T, 3, H, W), found {video.dtype} {tuple(video.shape)}"
            )
        tokens = self._run("encoder", self.encoder, video.flatten(0, 1))
        b, t, _, height, width = video.shape
        self._require(
            "encoder", tokens, "integers", (b * t, height // self.stride, width // self.stride)
        )
        require_tokens(tokens, self._vocab)
        return tokens.long().unflatten(0, (b, t))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Pictures of tokens.

        Args:
            z: integer (B, T, h, w) in 0..vocab-1.

        Returns:
            float32 (B, T, 3, h * stride, w * stride), clamped to [-1, 1].

        Raises:
            ValueError: `z` has another shape or dtype.
            UserError: no decoder was opened, a token is not in the codebook, or the file fails or
                returns anything but such pictures.
        """
        if z.ndim != 4 or z.is_floating_point() or z.dtype == torch.bool:
            raise ValueError(
                f"decode expects integer tokens (B, T, h, w), found {z.dtype} {tuple(z.shape)}"
            )
        if self.decoder is None:
            raise UserError(
                "This tokenizer was opened without a decoder; give the decoder's file "
                "to draw pictures."
            )
        require_tokens(z, self._vocab)
        images = self._run("decoder", self.decoder, z.flatten(0, 1).long())
        b, t, h, w = z.shape
        self._require("decoder", images, "floats", (b * t, 3, h * self.stride, w * self.stride))
        return images.float().clamp(-1.0, 1.0).unflatten(0, (b, t))

    def _run(self, part: str, module: nn.Module, inputs: Tensor) -> Tensor:
        try:
            output = module(inputs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"The {part} {self.files[part]} fails on {inputs.dtype} {tuple(inputs.shape)} "
                f"({reason}); check that encoder and decoder are not swapped, and the size it was "
                "made for."
            ) from None
        if not isinstance(output, Tensor):
            raise UserError(
                f"The {part} {self.files[part]} should return one tensor, found "
                f"{type(output).__name__}."
            )
        return output

    def _require(self, part: str, output: Tensor, kind: str, shape: tuple[int, ...]) -> None:
        dtype_fits = output.is_floating_point() if kind == "floats" else _is_integer(output)
        if not dtype_fits or tuple(output.shape) != shape:
            raise UserError(
                f"The {part} {self.files[part]} should return {kind} {shape}, found {output.dtype} "
                f"{tuple(output.shape)}; give the tokenizer's own {part}, of stride {self.stride}."
            )


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def open_script(path: Path, device: torch.device | str) -> nn.Module:
    """The module of a TorchScript file.

    Raises:
        UserError: it is missing, damaged or no TorchScript.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}; give a TorchScript file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what was released
            return torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path} is damaged or no TorchScript file ({reason}); copy it again."
        ) from None
