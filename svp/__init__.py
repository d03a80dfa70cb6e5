"""The Semantic Visual Projector (SVP, arXiv 2509.13676) and its superpixels."""
