"""A finished study mirrored into MLflow, and which store that is."""
