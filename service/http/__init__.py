"""The interface over HTTP: the application, what surrounds a request, and the order of an inference call.

Imports: `access`, `engine`, `errors`, `images`, `model`, `serving`, `settings`, `telemetry`.
"""
