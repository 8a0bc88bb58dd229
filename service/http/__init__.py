"""The interface over HTTP: connections, bodies, routes, answers, and the document that describes them.
Imports every room but `processes` and those of the command line.
"""
