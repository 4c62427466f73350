"""Models: loading checkpoints, tuning methods, bottleneck adapters, small convolutional nets.

May import errors, recipe and data.
"""
