"""How good a model is on images whose classes are known."""
