"""`finetune predict` of a plain text classifier starts without what only training needs."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import train_job

# Prints the prediction, then the names of all imported modules on one line.
PREDICT = """\
import sys
from finetune.cli import main
main(["predict", sys.argv[1], "the film was good"])
print(*sys.modules)
"""
# Modules that take from a tenth of a second to several seconds to import.
NOT_NEEDED = {
    *("bitsandbytes", "matplotlib", "peft"),
    *("scipy.stats", "sklearn.linear_model", "sklearn.model_selection"),
    *("finetune.data.corpus", "finetune.evaluation.baselines"),
    *("finetune.models.bottleneck", "finetune.models.speed.cached_features"),
    *("finetune.report.figures", "finetune.training.runner"),
}


def test_predict_imports_nothing_that_only_training_needs(tiny_recipe: Path) -> None:
    run, _ = train_job(tiny_recipe, "--max_steps", "1")
    command = [sys.executable, "-c", PREDICT, str(run)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer, modules = done.stdout.splitlines()
    assert "prediction" in answer
    imported = set(modules.split())
    assert "transformers.models.bert.modeling_bert" in imported
    assert sorted(NOT_NEEDED & imported) == []
