"""The wings: one folder per system, which know nothing of one another."""
