"""The Open Inference Protocol over gRPC, with health and reflection; optional, and the only room that knows of gRPC.

Imports: `access`, `calls`, `engine`, `errors`, `model`, `protocol`, `serving`, `settings`, `telemetry`.
"""
