"""The evaluation of search: methods at equal cost, what is measured of their videos, and what the rows say.

    methods     how a video is made: which of the paper's units are on, and how many candidates a budget pays for
    metrics     what is measured of a finished video, by rewards and verdicts that the search does not see
    results     rows in a folder: one video, one line
    running     videos that are still missing, made one after the other, on one process or many
    suites      which methods meet on which prompts
    statistics  intervals and paired tests
    report      tables and pictures, from rows alone

`python -m stream_t1.demo.evaluate` is the command.
"""
