"""What operators see: metrics, logs, the times of stages, and traces.

Imports: `engine`, `errors`, `images`, `model`, `settings`.
"""
