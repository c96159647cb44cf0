"""The contract between training and serving: what a model folder holds, and how to run it.

Knows neither torch nor grpc nor a command line. Both deployables call this one package for decoding,
preprocessing, running and ranking, so what was measured in training is what answers in production.
"""

__version__ = "0.1.0"
