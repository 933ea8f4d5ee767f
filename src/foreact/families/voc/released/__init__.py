"""Checkpoints of the VOC release."""
