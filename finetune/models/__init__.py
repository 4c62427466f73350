"""Checkpoints with a head, the ways of tuning them, small models of our own.

May import errors, recipe and data.
"""
