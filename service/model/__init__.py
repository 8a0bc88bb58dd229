"""What is served: the model directory and its checks, loading it as the settings say, postprocessing.
Imports `settings`, `images` and `engine`; `directory` and `postprocess`, which the exporter uses too, none of these.
"""
