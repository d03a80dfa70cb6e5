"""The contract of superpixel sources, superpixels on disk, and the stage that writes them."""
