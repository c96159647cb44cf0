"""The contract between training and serving: what a model folder holds, and how to run it.

Knows neither torch nor grpc nor a command line. Both deployables call this one package for decoding,
preprocessing, running and ranking, so what was measured in training is what answers in production.
"""

import os

__version__ = "0.1.0"

# Before onnxruntime is imported: from 1.29 on it would tell its makers about this machine, over the network and in a
# database in the home folder (seen with 1.32: questions for mobile.events.data.microsoft.com every few seconds).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
