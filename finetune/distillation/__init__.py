"""Students: jobs whose model is taught by a finished run, or made smaller, or both.

``builder`` gives what builds the job of any recipe. A teacher's outputs do not change while its
student trains, so they are computed once a row and kept in the cache. May import every package but
checks, forecast and report.
"""

from finetune.distillation.students import builder

__all__ = ["builder"]
