"""Studies: many runs of one recipe that answer one question.

``seeds`` (how much is chance), ``curve`` (would more rows help) and ``sweep`` (which settings).
Each run is an ordinary one, trained by a child process (``children``) in its own run directory, so
a study that was killed continues when its command is repeated.
"""
