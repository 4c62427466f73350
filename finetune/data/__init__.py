"""Where rows come from and how they reach a model: sources, files, labels, splits, tokens, batches.

May import errors and recipe.
"""
