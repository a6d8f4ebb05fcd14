"""flash_attention: the primitives, their derivative, batching and partitioning, and the API."""
