"""The server: sockets, TLS, heads of requests, and its orderly end. Knows nothing of routes.

Imports: `calls`, `errors`, `http`, `settings`.
"""
