"""Projectors, controls and superpixel sources: found and read unimported; a file to start from."""
