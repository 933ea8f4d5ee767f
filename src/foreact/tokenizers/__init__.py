"""Pixels <-> codes or latents."""
