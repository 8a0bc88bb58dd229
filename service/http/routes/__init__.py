"""One module a call of `/v1`, for operators and the page; `v2/`, the Open Inference Protocol.
Imports the rest of `http`, but not its application.
"""
