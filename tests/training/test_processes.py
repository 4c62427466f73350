"""Several processes train like one, wait for one another, and agree on what they do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType

from finetune import distillation, recipe, run_directory
from finetune.errors import UserError
from finetune.tasks import text_classification
from finetune.training import processes, runner
from finetune.training.job import Job
from finetune.training.trainer import StepTrainer
from tests.conftest import train
from tests.tasks import test_question_answering
from tests.tasks.test_image_classification import ARCHITECTURES, paint, save


def launch(count: int, script: str, *words: str) -> str:
    """Runs a Python script in several processes and returns what they wrote to stderr."""
    Path("script.py").write_text(script, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={count}", "script.py", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def losses(run: run_directory.Run) -> list[float]:
    return [row["loss"] for row in run.history() if "loss" in row]


# Trains several recipes, and another one in a folder of each process's own.
SEVERAL = """
import json, os, sys
from pathlib import Path
from finetune import cli, recipe, tasks
from finetune.errors import UserError
from finetune.training import runner
runs = json.loads(sys.argv[1])
for words in runs:
    cli.main(["train", *words])
read = recipe.load(runs[0][0], ["--output_dir", "runs/apart"])
folder = Path("rank-" + os.environ["RANK"])
folder.mkdir()
os.chdir(folder)
try:
    runner.train(read, tasks.find(read.task).build)
except UserError as error:
    Path("refused.txt").write_text(str(error))
"""
METHODS: dict[str, list[str]] = {
    **{"full": [], "lora": [], "bottleneck": []},
    # Embeddings that are all alike at first magnify rounding, the more the larger the steps.
    "contrastive": ["--learning_rate", "2e-4"],
}


def test_two_processes_give_the_losses_of_one(tiny_recipe: Path, tiny_bert: Path) -> None:
    rows = "--per_device_train_batch_size"
    alone = {
        m: train(tiny_recipe, "--method", m, *own, rows, "14", "--output_dir", f"one/{m}")
        for m, own in METHODS.items()
    }
    taught = ["--teacher", "one/full", "--layers", "1", "--hidden_weight", "1"]
    build = distillation.builder(recipe.load(tiny_recipe, taught))
    weighted = ["--class_weights", "{negative: 5}", "--loss", "focal"]
    alone["weighted"] = train(tiny_recipe, *weighted, rows, "14", "--output_dir", "one/weighted")
    alone["balanced"] = train(
        tiny_recipe, "--sampler", "balanced", rows, "14", "--output_dir", "one/balanced"
    )
    flags = [*taught, rows, "14", "--output_dir", "one/student"]
    alone["student"] = train(tiny_recipe, *flags, build=build)
    # The mask token of DINOv2 gets no gradient.
    paint(Path("photos"), 12)
    save(ARCHITECTURES["dinov2"], Path("dinov2"))
    images = tiny_recipe.read_text("utf-8").replace("text-class", "image-class").splitlines()
    images[1] = "model: {checkpoint: dinov2}"
    images[2] = "data: {train: photos, holdout: 9, validation_size: 6}"
    Path("images.yaml").write_text("\n".join(images), encoding="utf-8")
    alone["image"] = train(Path("images.yaml"), rows, "8", "--max_steps", "3")

    asked = test_question_answering.recipe_for(Path(), tiny_bert, without=40)
    alone["asked"] = train(asked, rows, "14", "--max_steps", "7", "--method", "lora")

    runs = [
        ["tiny.yaml", "--method", m, *own, rows, "7", "--output_dir", f"two/{m}"]
        for m, own in METHODS.items()
    ]
    runs.append(["tiny.yaml", *taught, rows, "7", "--output_dir", "two/student"])
    runs.append(["tiny.yaml", *weighted, rows, "7", "--output_dir", "two/weighted"])
    runs.append(["tiny.yaml", "--sampler", "balanced", rows, "7", "--output_dir", "two/balanced"])
    runs.append(["images.yaml", rows, "4", "--max_steps", "3", "--output_dir", "two/image"])
    runs.append(["asked.yaml", rows, "7", "--max_steps", "7", "--method", "lora"])
    runs[-1] += ["--output_dir", "two/asked"]
    shown = launch(2, SEVERAL, json.dumps(runs))

    for name, one in alone.items():
        two = run_directory.Run(f"two/{name}")
        # 96 rows in batches of 14 leave 12: no row may be repeated to fill the last batch.
        assert losses(two) == pytest.approx(losses(one), abs=1e-5)
        ids = list(two.predictions()["id"])
        assert ids == list(one.predictions()["id"])
        found, expected = (r.results()["metrics"][r.results()["headline"]] for r in (two, one))
        assert len(ids) == len(set(ids)) == found["n"]
        assert found == pytest.approx(expected, abs=1e-5)
        seen = "rows_seen" if name in {"image", "contrastive"} else "tokens_seen"
        assert two.results()["cost"][seen] == one.results()["cost"][seen]
        did = two.results()["accelerate"]
        assert (did["distributed_type"], did["processes"]) == ("MULTI_CPU", 2)
    assert shown.count("1 weights get no gradient, for example dinov2.embeddings.mask_token") == 1

    for rank in range(2):
        refused = Path(f"rank-{rank}", "refused.txt").read_text("utf-8")
        assert refused.startswith("runs/apart: process 1 has another folder of this name")
    assert not Path("rank-0/runs/apart/recipe.yaml").exists()


# The first process takes longer for what it does alone than the others may wait for a collective.
SLOW = """
import os, sys, time
from pathlib import Path
import datasets
from finetune import cli, tasks
from finetune.training import checkpoints, run_results, runner, trainer
def delay(owner, name):
    kept = getattr(owner, name)
    def late(*args, **kwargs):
        if (owner, name) not in waited:
            waited.add((owner, name))
            time.sleep(3)
        return kept(*args, **kwargs)
    setattr(owner, name, late)
rank, waited = int(os.environ["RANK"]), set()
if rank == 0:
    delay(datasets.Dataset, "map")
    delay(checkpoints, "seal")
    delay(run_results, "results")
# The launcher does not start them at the same moment.
Path(f"ready-{rank}").touch()
while not all(Path(f"ready-{i}").exists() for i in range(int(os.environ["WORLD_SIZE"]))):
    time.sleep(0.01)
cli.main(["train", *sys.argv[1:]])
assert len(waited) == 3 * (rank == 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_wait_for_one_that_works_longer_than_the_time_limit(
    tiny_recipe: Path, count: int
) -> None:
    # A single save, so that the best weights are in it and have to be complete to be read.
    launch(count, SLOW, str(tiny_recipe), "--ddp_timeout", "2", "--num_train_epochs", "1")
    run = run_directory.Run("runs/tiny/seed-0")
    assert run.results()["accelerate"]["processes"] == count
    assert run.results()["chosen"]["step"] == run.results()["steps"]


def test_several_xla_processes_are_rejected(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = SimpleNamespace(distributed_type=DistributedType.XLA, num_processes=4)
    monkeypatch.setattr(processes, "PartialState", lambda **kwargs: state)
    with pytest.raises(UserError, match="4 XLA processes cannot save a checkpoint together; train"):
        train(tiny_recipe)


# --- one process -------------------------------------------------------------------------------


def test_a_process_uses_one_of_several_gpus(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--use_cpu", "false", "--dataloader_pin_memory", "false", "--max_steps", "2"]
    one = train(tiny_recipe, *flags)
    assert "GPUs" not in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    two = train(tiny_recipe, *flags, "--output_dir", "runs/two")
    assert losses(two) == losses(one)
    shown = capsys.readouterr().err
    assert "trains on one of 2 GPUs, cpu; `accelerate launch -m finetune train RECIPE`" in shown
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("MIXED_PRECISION", "bf16", "mixed_precision bf16, and the recipe says no; .*--bf16 true"),
        ("DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend inductor, .*--torch_compile_backend induc"),
        ("GRADIENT_ACCUMULATION_STEPS", "4", "the recipe says 2; .*accumulation_steps 4 if you"),
    ],
)
def test_settings_of_accelerate_that_contradict_the_recipe_are_rejected(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, advice: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(UserError, match=advice) as caught:
        train(tiny_recipe, "--gradient_accumulation_steps", "2")
    assert len(str(caught.value)) <= 300
    assert not Path("runs/tiny/seed-0/recipe.yaml").exists()


def test_results_have_what_accelerate_did(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    flags = ["--bf16", "true", "--max_steps", "1"]
    did = train(tiny_recipe, *flags).results()
    assert did["device"].endswith(", bf16")
    assert did["accelerate"] == {
        "distributed_type": "NO",
        "backend": None,
        "processes": 1,
        "mixed_precision": "bf16",
        "dynamo_backend": "NO",
        "gradient_accumulation": {"num_steps": 1},
    }


def trainer_of(path: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> StepTrainer:
    """Returns the trainer of a recipe, which has not trained."""
    made: list[StepTrainer] = []
    kept = runner.new_trainer

    def keep(*args: Any) -> StepTrainer:
        made.append(kept(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "new_trainer", keep)
    with pytest.raises(KeyboardInterrupt):
        train(path, *flags)
    return made[0]


def test_looking_for_unused_weights_leaves_the_model_as_it_was(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--config", "{hidden_dropout_prob: 0.1}"]
    trainer = trainer_of(tiny_recipe, monkeypatch, *flags)
    model: Any = trainer.model
    model.register_buffer("seen", torch.zeros(()))
    model.register_forward_hook(lambda *_: model.seen.add_(1) and None)
    model.bert.register_parameter("idle", torch.nn.Parameter(torch.zeros(2)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    assert trainer.unused_weights() == ["bert.idle"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_algorithms_are_deterministic_before_the_model_is_built(tiny_recipe: Path) -> None:
    def build(read: recipe.Recipe) -> Job:
        assert torch.are_deterministic_algorithms_enabled()
        return text_classification.TASK.build(read)

    kept = dict(os.environ)
    try:
        train(tiny_recipe, "--full_determinism", "true", "--max_steps", "1", build=build)
    finally:
        torch.use_deterministic_algorithms(False)
        for name in set(os.environ) - set(kept):
            del os.environ[name]


def reads_a_step(path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int) -> list[int]:
    """Returns how often the trainer reads a tensor's value in each step, for which it would wait.

    Attention on a CPU and masks of transformers read values, too.
    """
    reads, steps, kept = [0], [], StepTrainer.end_step

    def count(name: str) -> None:
        own = getattr(torch.Tensor, name)

        def counted(tensor: torch.Tensor, *args: Any) -> Any:
            caller = Path(sys._getframe(1).f_code.co_filename)
            reads[0] += caller.parent.name == "training" or caller.name == "trainer.py"
            return own(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)

    def end_step(trainer: StepTrainer, *args: Any) -> None:
        steps.append(reads[0])
        kept(trainer, *args)
        reads[0] = 0

    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        count(name)
    monkeypatch.setattr(StepTrainer, "end_step", end_step)
    flags = ["--gradient_accumulation_steps", str(accumulation), "--max_steps", "4"]
    flags += ["--per_device_train_batch_size", str(16 // accumulation), "--logging_steps", "9"]
    train(path, *flags, "--output_dir", f"runs/{accumulation}")
    return steps[1:4]


def test_micro_batches_do_not_wait_for_the_accelerator(tiny_recipe: Path) -> None:
    counted = []
    for accumulation in (1, 4):
        with pytest.MonkeyPatch.context() as patch:
            counted.append(reads_a_step(tiny_recipe, patch, accumulation))
    assert counted[0] == counted[1]
    # Whether the step is finite.
    assert counted[0] == [1, 1, 1]


@pytest.mark.parametrize("task", ["text-classification", "fill-mask"])
def test_tokens_are_those_of_the_attention_masks(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    kept, seen = StepTrainer.training_step, []

    def step(trainer: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(int(inputs["attention_mask"].sum()))
        return kept(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(StepTrainer, "training_step", step)
    run = train(tiny_recipe, "--task", task, "--gradient_accumulation_steps", "2")
    rows = [row for row in run.history() if "loss" in row]
    steps = len(rows)
    assert len(seen) > steps > 2
    assert rows[-1]["num_input_tokens_seen"] == sum(seen)
    assert run.results()["cost"]["tokens_seen"] == sum(seen)
