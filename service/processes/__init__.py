"""The service of several processes: supervisor, workers and engine processes.
Imports `http`, `telemetry`, `model` and `engine`.
"""
