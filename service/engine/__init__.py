"""Batching and running: clients, slots, the core. Knows nothing of HTTP, images or files.

Imports: `errors`.
"""
