"""From image files to pixels, and to what is drawn on them; a module a format, whose cost it knows before decoding.
Imports of the service only the errors and, for priorities and turns, `engine`.
"""
