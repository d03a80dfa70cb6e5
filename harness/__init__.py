"""What every projector is plugged into and measured by."""
