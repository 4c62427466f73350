"""Faster ways to compute the same: no padding, cached features, CPU kernels.

May import errors and data.
"""
