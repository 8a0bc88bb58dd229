"""The demo model: what it is trained on, how, and its weights."""
