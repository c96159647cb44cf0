"""The gRPC service: serves bundles with onnxruntime. Knows neither torch nor the trainer."""

import bundle  # noqa: F401 -- before onnxruntime: see there
