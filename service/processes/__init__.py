"""The service of several processes: supervisor, workers, engine processes.

Imports: `access`, `engine`, `errors`, `http`, `model`, `serving`, `settings`, `telemetry`.
"""
