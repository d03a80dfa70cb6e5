"""Commands of the ``svp`` program that are more than a call; each imports what it needs when it runs."""
