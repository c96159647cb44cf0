"""The gRPC contracts: .proto files and what protoc makes of them, side by side."""
