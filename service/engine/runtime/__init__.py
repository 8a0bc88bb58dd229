"""ONNX Runtime: devices and their options, sessions, buffers, and the checks of a model that was loaded.

Imports: `engine`, `errors`.
"""
