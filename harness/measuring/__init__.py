"""Time and memory: every row of a study in one job, and benches of the parts."""
