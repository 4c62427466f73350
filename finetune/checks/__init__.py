"""`finetune check`: what is in the data, what is wrong with it, and what training would see of it.

``check`` runs the checks, ``rendering`` shows what they found, and each other module has the checks
of one kind: functions over the rows of a corpus that return findings. No model is loaded. May
import errors, recipe, data, models, evaluation, tasks and report.
"""
