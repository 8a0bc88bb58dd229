"""What a call is, whatever carries it: its life, its key, its inference and its account.

Imports: `access`, `engine`, `errors`, `images`, `model`, `samples`, `serving`, `settings`, `telemetry`.
"""
