"""Quantised weights: ``Int4Weight``, four bits a number, from the formats of the hub."""

from jax_baracuda._src.int4.weight import Int4Weight

__all__ = ["Int4Weight"]
