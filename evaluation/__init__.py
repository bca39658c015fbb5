"""The evaluation of search, on any model: methods at equal cost, metrics of their videos, and statistics of these.

    methods     ways to make a video: which of the paper's units are on, and how many candidates a budget pays for
    metrics     measurements of a finished video, by rewards or any other verdict
    results     rows in a folder: one video, one line
    running     videos that are still missing, made one after the other, on one process or many
    suites      comparisons of methods on prompts
    statistics  intervals and paired tests
    report      tables and curves, from rows alone
    pictures    contact sheets

`stream-t1 evaluate` runs it on any model, `python -m stream_t1.demo.evaluate` on the demo with its own verdicts.
"""
