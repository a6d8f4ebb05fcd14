"""Weights of four bits and the products with them."""
