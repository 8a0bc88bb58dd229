"""A module for each call of `/v1`, for operators, and for the page; `v2/` has the Open Inference Protocol.

Imports: `calls`, `engine`, `errors`, `http`, `images`, `model`, `serving`, `telemetry`.
"""
