"""The subcommands of ``finetune``, one file each; ``finetune.cli`` lists them.

They import torch only when they need it, so that help and tables appear at once.
May import every package.
"""
