"""What is served: the versions of models with their engines, and how they are loaded, replaced and let go.

Imports: `engine`, `errors`, `images`, `model`, `settings`, `telemetry`.
"""
