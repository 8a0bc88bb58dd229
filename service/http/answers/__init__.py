"""Writing answers: their schemas, tensors as text and bytes, and the choice between representations.
Imports `model` and the errors.
"""
