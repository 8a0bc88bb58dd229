"""The interface over HTTP: the application, what surrounds a request, and the order of an inference call.

Imports: `access`, `calls`, `engine`, `errors`, `images`, `protocol`, `samples`, `serving`, `settings`, `telemetry`.
"""
