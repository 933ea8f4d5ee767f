"""Released tokenizers."""
