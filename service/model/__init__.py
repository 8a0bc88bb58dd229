"""What is served: what a repository holds, the manifest and directory of a model, loading it, postprocessing.

Imports: `engine`, `errors`, `images`, `remote`, `settings`, `settings_file`, `text_files`.
"""
