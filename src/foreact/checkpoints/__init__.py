"""Our checkpoints: the format, strict loading, and those that ship."""
