"""What operators see: metrics, logs, stage times and traces. Imports the engine's and the images' records, `model` and
`settings`; knows nothing of HTTP.
"""
