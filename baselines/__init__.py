"""Every compared projector and control, one file each."""
