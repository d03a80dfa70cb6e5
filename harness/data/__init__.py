"""Data: the REFER reader, synthetic referring scenes, and the prepared tables that both end in."""
