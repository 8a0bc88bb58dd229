"""The service of several processes: supervisor, workers, engine processes.

Imports: `access`, `engine`, `errors`, `grpc`, `http`, `model`, `serving`, `settings`, `telemetry`.
"""
