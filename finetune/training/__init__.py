"""From a job to a finished run directory: trainer, checkpoints, signals, results.

May import every floor but tasks, report, inference.
"""
