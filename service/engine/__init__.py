"""Batching and running: clients, slots, the core, the runtime. Knows nothing of HTTP, images or files.
Imports the errors alone.
"""
