"""From score rows to what a paper prints: tables, figures, overlays, snapshots."""
