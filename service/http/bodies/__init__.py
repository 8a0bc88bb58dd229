"""Reading bodies: forms, multipart, JSON and base64, within their limits.

Imports: `calls`, `errors`, `images`, `settings`.
"""
