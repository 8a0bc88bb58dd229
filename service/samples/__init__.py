"""A sample of what is asked and answered, as Parquet files in a folder, where the settings ask for one.

    event loop ──take──▶ sampler's queue ──thread──▶ columns ──▶ folder: 20261128T102233Z-dat_tiny-1-3fa2c19b.parquet

`sampler` chooses requests and holds what waits, `columns` is the form of predictions and outputs in Parquet, which the
results of `bulk` have too, and `folder` keeps the files whole and within their space.

Invariants: what is sampled neither delays nor fails a request, whatever becomes of the folder; a file is there only if
it is whole; all files together never take more than their space. pyarrow is imported where a sample is asked for.

Imports: `engine`, `errors`, `model`, `settings`.
"""
