"""Writing answers: their schemas, tensors as text and bytes, the choice between representations.

Imports: `calls`, `errors`, `model`, `serving`.
"""
