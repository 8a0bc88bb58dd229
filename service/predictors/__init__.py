"""A model that is asked about many images: one in this process, or one behind a server, by the same protocol.

For commands that work through files or data sets. `ordered.in_order` keeps as many images under way as a predictor
wants and gives the answers in the order of the images, so that a caller of a few lines holds a bounded number of them:

    async with in_process.open_predictor(settings) as predictor:
        async for name, answer in in_order(names, ask, concurrency=predictor.concurrency):
            ...

Imports: `engine`, `errors`, `images`, `model`, `settings`.
"""
