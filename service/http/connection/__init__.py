"""The server: sockets, TLS, heads of requests, and its orderly end; knows nothing of routes.
Imports `http.problems` for what it refuses itself, and the errors.
"""
