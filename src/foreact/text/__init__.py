"""Frozen text encoders: what an instruction says, as one row of numbers."""

from foreact.plugs import TextModel

MINILM = TextModel(name="minilm", open="foreact.text.minilm:open_minilm")
CLIP = TextModel(name="clip", open="foreact.text.clip:open_clip")
