"""Quantised weights: ``Int4Weight``, four bits a number, from the formats of the hub.

``load_checkpoint`` reads a Hugging Face folder. docs/quant.md is the guide.
"""

from jax_baracuda._src.int4.checkpoint import load_checkpoint
from jax_baracuda._src.int4.weight import Int4Weight

__all__ = ["Int4Weight", "load_checkpoint"]
