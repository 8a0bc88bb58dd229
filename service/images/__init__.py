"""What an image file holds, before any decoder sees it: a module a format, and what they have in common.

May import nothing of the service but its own modules, NumPy and Pillow.
"""
