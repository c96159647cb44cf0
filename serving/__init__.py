"""The gRPC service: serves bundles with onnxruntime. Knows neither torch nor the trainer."""
