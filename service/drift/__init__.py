"""Whether answers of one time differ from those of another by more than chance: classes, scores, embeddings.

`reading` takes the answers from Parquet, as bulk runs and samples of requests have them, `measures` are statistics of
two samples, `comparison` puts them together, and `picture` draws them.

Imports: `errors`, `samples`.
"""
