"""The projectors that the paper's method is compared with, and the controls: one file each."""
