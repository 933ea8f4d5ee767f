"""Checkpoints: our format (format.py), foreign files read safely (pickles.py) and converted (convert.py)."""
