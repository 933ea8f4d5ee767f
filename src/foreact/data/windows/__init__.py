"""Windows cut from episodes, and the batches made of them."""
