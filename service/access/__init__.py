"""Who may ask: API keys by their hashes, and how much each may ask.

Imports: `errors`.
"""
