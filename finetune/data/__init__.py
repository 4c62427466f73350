"""Data: sources, file readers, row checks, labels, splits, tokens, packing, augmentation.

May import errors and recipe.
"""
