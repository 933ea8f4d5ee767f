"""Checkpoints of the UVA release."""
