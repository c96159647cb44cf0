"""Speed and quality, measured as ratios in one run, by programs that anyone can run."""

import bundle  # noqa: F401 -- before onnxruntime: see there
