"""What is served: the manifest and directory of a model, loading it as the settings say, postprocessing.

Imports: `engine`, `errors`, `images`, `settings`, `text_files`.
"""
