"""Frozen encoders as a function of a photograph, and the cache of what they give."""
