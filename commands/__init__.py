"""The command line, one file a command, with `add_arguments(parser)`, which also names the function that runs.

What is slow to import is imported when a command runs.
"""
