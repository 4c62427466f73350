"""Metrics with intervals, and the baselines that a model has to beat.

May import errors, recipe and data.
"""
