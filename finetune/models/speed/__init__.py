"""Speed-ups that keep the result: padding-free batches, cached features, CPU kernels.

May import errors and data.
"""
