"""Sparse codes: orthogonal matching pursuit, and the dictionary that it learns."""
