"""What a prediction is worth: IoU of every expression, intervals, protocols, and known values to meet."""
