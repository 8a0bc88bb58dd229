"""The OpenAPI document: what FastAPI cannot read off the routes, examples, and the whole.
Imports schemas and, for the document, the routes.
"""
