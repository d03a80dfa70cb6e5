"""The assembled model and its parts."""
