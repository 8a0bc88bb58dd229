"""The interface's document: what FastAPI cannot read off the routes, the examples, the whole.

Imports: `errors`, `http`, `model`, `protocol`, `serving`, `settings`, `telemetry`.
"""
