"""Reading bodies: forms, multipart, JSON and base64, within their limits.
Imports `images`, `settings` and the errors.
"""
