"""Files of elsewhere: addresses of object stores and web servers, and copying from them whole and checked.

Knows nothing of models or settings, so that the exporter can fetch weights by the same way.

Imports: `errors`.
"""
