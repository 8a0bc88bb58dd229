"""What the Open Inference Protocol, version 2, means, with the extensions of Triton's that its clients use.

HTTP and gRPC are two codings of it, and what is here is the same in both. It differs from `/v1` in how a request is
read and an answer written; admission, limits, deadlines and the work itself are those of `calls`.

Imports: `calls`, `engine`, `errors`, `images`, `model`, `serving`, `settings`, `telemetry`.
"""
