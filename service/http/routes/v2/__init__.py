"""The Open Inference Protocol over HTTP: JSON, and tensors behind it. What it means has `protocol`.

Imports: `calls`, `errors`, `http`, `model`, `protocol`, `serving`.
"""
