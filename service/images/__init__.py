"""From image files to pixels, and to what is drawn on them; what a file costs is known before it is decoded.

Imports: `engine`, `errors`.
"""
