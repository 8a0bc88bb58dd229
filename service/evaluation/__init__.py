"""How good a model is on images whose classes are known: ground truth, tallies.

Imports: `errors`, `model`, `text_files`.
"""
