"""Predictions and features of any number of images as Parquet, by a run that can be killed and resumed anywhere.

    inputs ──parts.plan──▶ parts ──run.run──▶ part-000000.parquet, part-000001.parquet, ...

`inputs` reads what images come from, `parts` cuts it into parts in a way that depends on nothing but the input,
`writing` makes one part's file, `journal` is what a run's folder holds besides, and `run` brings them together.

Invariants: a part's file is there only if it is whole and on the disk; what it holds depends only on the input and
the options that the folder's journal records. So a run that is killed at any point has lost the parts under way and
nothing else, and what continues it repeats none of the others.

Imports: `engine`, `errors`, `images`, `model`, `predictors`, `samples`, `settings`.
"""
