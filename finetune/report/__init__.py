"""Run directories -> tables, figures, an HTML page, a model card. Training never imports it.

May import errors, recipe, run_directory, data, evaluation, forecast and tasks, whose objects it
asks how a task's model is used and how its mistakes are shown.
"""
