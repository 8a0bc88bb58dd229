"""What is served: the manifest and the directory of a model, loading it as the settings say, postprocessing.
Imports `settings`, `images` and `engine`; `manifest`, `directory` and `postprocess`, which the exporter uses too, none.
"""
