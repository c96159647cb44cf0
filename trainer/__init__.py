"""Fine-tune a pretrained CNN on a folder of pictures, and export it as a bundle. Run as `trainer`."""

import os

import bundle  # noqa: F401 -- before onnxruntime: see there

# Before torch loads its OpenMP: how long an idle thread spins before it sleeps. The default, milliseconds, starves
# training as soon as anything else runs: a step of Lite0 at 64 px, batch 64, two cores, took 2.3 s beside one busy
# process and 0.34 s alone; with 3000 it takes 0.7 s and 0.38 s.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
