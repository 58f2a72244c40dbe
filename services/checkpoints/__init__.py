"""Tensors on disk: read by offset, joined and permuted, written with the header first."""
