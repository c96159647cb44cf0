"""The report: what was trained on what, how good it is, and where it errs, as one HTML file that needs no network.

`collect` measures and gathers, `plots` and `gradcam` draw, `render` writes. Nothing here trains, and no other part of
the trainer reads what it writes.
"""
