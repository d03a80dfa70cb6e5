"""A run put together and trained in two stages, the learning-rate search, and what is trained once."""
