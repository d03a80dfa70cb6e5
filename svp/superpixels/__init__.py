"""Superpixel sources: SAM with the FMA-WSSS selection (the paper's), and the controls beside it."""
