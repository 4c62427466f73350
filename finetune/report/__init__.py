"""Run directories -> tables, figures, an HTML page, a model card. Training never imports it.

May import errors, recipe, run_directory, data, evaluation and tasks, which it asks how their
models are used and their mistakes are shown.
"""
