"""The Open Inference Protocol, version 2, with the extensions of Triton's that its clients use.

It differs from `/v1` in how a request is read and an answer written; admission, limits, deadlines and the work itself
are `service.http.inference`'s.

Imports: `engine`, `errors`, `http`, `images`, `model`, `serving`, `settings`, `telemetry`.
"""
