"""Every field of ``TrainingArguments`` does what it says, or is refused before training."""

from dataclasses import MISSING, fields
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args, get_type_hints

import pytest
import torch
from transformers import TrainingArguments

from finetune import recipe, run_directory
from finetune.errors import UserError
from finetune.recipe import training_fields
from finetune.recipe.training_fields import FORMER, GONE, OWN, REFUSED, RENAMED, REPLACED, USED
from finetune.training import processes
from finetune.training.arguments import NEEDS, training_arguments
from finetune.training.job import Job
from tests.conftest import sentences, train, write_csv

FIELDS = {f.name: f for f in fields(TrainingArguments) if f.init}
RECIPE = """\
task: text-classification
model: {checkpoint: "embedded:minilm"}
data: {dataset: "embedded:imdb"}
"""


@pytest.fixture(autouse=True)
def environment(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe file, and no folder for TensorBoard left behind."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    (workdir / "r.yaml").write_text(RECIPE, encoding="utf-8")


def arguments(*flags: str, headline: str = "accuracy", **job: Any) -> TrainingArguments:
    """Returns what ``training_arguments`` makes of flags, for a job of a few attributes."""
    read = recipe.load("r.yaml", ["--use_cpu", "true", *flags])
    given = {"data": SimpleNamespace(validation=[1]), "training": {}, "extra_metrics": {}}
    given |= {"label_smoothing": 0.0, "processor": None, "headline": headline, **job}
    made = cast(Job, SimpleNamespace(**given))
    return training_arguments(read, run_directory.Run("runs/x"), made)


# --- the table -------------------------------------------------------------------------------


def test_the_table_has_every_field_of_the_installed_class_once() -> None:
    sections = [set(USED), set(REPLACED), set(REFUSED)]
    assert set.union(*sections) == set(FIELDS)
    assert sum(map(len, sections)) == len(FIELDS)
    assert {*RENAMED, *RENAMED.values()} <= set(FIELDS)
    assert set(NEEDS) <= USED
    assert not (set(FORMER) | set(GONE) | set(OWN)) & set(FIELDS)
    hints = get_type_hints(TrainingArguments)
    booleans = {
        n for n in FIELDS if hints[n] is bool or set(get_args(hints[n])) == {bool, type(None)}
    }
    assert booleans == training_fields.BOOLEANS


def test_the_default_of_a_refused_field_is_accepted_where_it_is_true() -> None:
    # What finetune changes is refused as transformers' default; all other defaults are accepted.
    changed = {"logging_nan_inf_filter", "remove_unused_columns", "do_train", "do_eval"}
    for name, refused in REFUSED.items():
        field = FIELDS[name]
        default = field.default_factory() if field.default is MISSING else field.default
        assert (default in refused.accepted) == (name not in changed | {"do_predict"}), name


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_field_is_one_line_with_the_reason(name: str) -> None:
    value = True not in REFUSED[name].accepted
    with pytest.raises(UserError) as caught:
        training_fields.check({name: value}, {f"training.{name}": f"--{name}"})
    message = str(caught.value)
    assert message.startswith(f"--{name}: {name}")
    assert message.endswith(f"is not offered: {REFUSED[name].why}")
    assert len(message) <= 300


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--bf16_full_eval", "bf16_full_eval is not offered: .* bf16: true evaluates in bf16, too"),
        ("--prediction_loss_only true", "the metrics need the predictions"),
        ("--dataloader_drop_last", "every row is trained on once an epoch"),
        ("--auto_find_batch_size", "half-trained weights"),
        ("--fsdp full_shard", "fsdp full_shard is not offered: use accelerate launch"),
        ("--fsdp true", "fsdp is not offered: use accelerate launch --config_file"),
        ("--parallelism_config {tp_size:2}", "parallelism_config .* is not offered"),
        ("--include_for_metrics loss", "metrics get predictions and labels"),
        ("--deepspeed ds.json", "deepspeed ds.json is not offered: use accelerate launch"),
        ("--do_train false", "do_train False is not offered: finetune train always trains"),
        ("--train_sampling_strategy sequential", "it can be random or group_by_length"),
        ("--hub_strategy checkpoint", "the model folder is pushed once, at the end"),
        ("--debug tpu_metrics_debug", "only underflow_overflow"),
        ("--label_smoothing_factor 2", "2 has to be from 0 to 1"),
        ("--max_steps 0", "max_steps 0 trains num_train_epochs"),
        (
            "--gradient_checkpointing --activation_checkpointing",
            "gradient_checkpointing is the old name of activation_checkpointing; keep one",
        ),
    ],
)
def test_a_refusal_comes_before_anything_is_read(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe.load("r.yaml", flags.split())


def test_what_happens_anyway_may_be_asked_for() -> None:
    flags = ["--do_train", "--do_eval", "true", "--do_predict", "--hub_strategy", "end"]
    assert recipe.load("r.yaml", flags).training["do_train"] is True


def test_old_names_of_transformers_own_reach_the_new_ones() -> None:
    flags = ["--gradient_checkpointing", "--gradient_checkpointing_kwargs", "{use_reentrant: true}"]
    read = recipe.load("r.yaml", flags)
    assert "gradient_checkpointing" not in read.training
    assert read.where("training.activation_checkpointing") == "--gradient_checkpointing"
    args = arguments(*flags)
    assert args.activation_checkpointing is True
    assert args.activation_checkpointing_kwargs == {"use_reentrant": True}


# --- names of earlier releases and other programs --------------------------------------------


def test_former_names_point_to_keys_that_exist() -> None:
    known = {*FIELDS, *recipe.FLAGS, *OWN, "the", "r"}
    for name, instead in FORMER.items():
        assert instead.split()[0].rstrip(",") in known, name
        assert name not in recipe.FLAGS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("warmup_ratio", "write warmup_steps, whose values below 1 are a share of all steps"),
        ("evaluation_strategy", "write eval_strategy"),
        ("no_cuda", "write use_cpu"),
        ("logging_dir", "TensorBoard's files are always in the run directory"),
        ("group_by_length", "write train_sampling_strategy group_by_length"),
        ("max_seq_length", "write max_length"),
        ("num_epochs", "write num_train_epochs"),
        ("epochs", "write num_train_epochs"),
        ("batch_size", "write per_device_train_batch_size"),
        ("lr", "write learning_rate"),
        ("per_gpu_train_batch_size", "write per_device_train_batch_size"),
        ("fp16_opt_level", "apex"),
        ("class_weight", "write class_weights"),
        ("focal_loss", "write loss focal"),
    ],
)
def test_a_former_name_is_told_what_became_of_it(name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"--{name}: {name} is not a key here.*{message}"):
        recipe.load("r.yaml", [f"--{name}", "1"])


def test_a_former_name_in_another_section_is_told_too() -> None:
    text = RECIPE.replace('minilm"', 'minilm", max_seq_length: 64')
    Path("r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"r.yaml:2: max_seq_length is not .*; write max_length"):
        recipe.load("r.yaml")


@pytest.mark.parametrize("name", ["sep", "foo", "stop"])
def test_what_is_not_near_is_not_suggested(name: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.load("r.yaml", [f"--{name}", "1"])
    assert str(caught.value) == f"--{name}: training key {name!r} is unknown"


@pytest.mark.parametrize(
    ("flag", "value", "command"),
    [
        ("seed", "0,1,2", "finetune train RECIPE --seeds 0,1,2"),
        ("seed", "[0, 1]", "finetune train RECIPE --seeds 0,1"),
        ("learning_rate", "1e-5,2e-5", "--learning_rate $v --output_dir runs/$v; done"),
        ("max_length", "64,128", "for v in 64 128; do"),
    ],
)
def test_several_values_are_several_runs(flag: str, value: str, command: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.load("r.yaml", [f"--{flag}", value])
    assert f"--{flag}: {flag}: a run has one value, not" in str(caught.value)
    assert command in str(caught.value)
    assert len(str(caught.value)) <= 300


# --- keys that need each other ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--eval_steps 5", "eval_steps has no effect with eval_strategy epoch; write eval_strat"),
        ("--save_steps 5", "save_steps has no effect with save_strategy epoch"),
        ("--lr_scheduler_type constant --warmup_steps 5", "write .* constant_with_warmup"),
        ("--dataloader_persistent_workers", "write dataloader_num_workers: 1"),
        ("--hub_model_id me/mine", "write push_to_hub: true"),
        ("--run_name mine", "no effect with report_to off"),
        ("--optim_args momentum=0.9", "optim adamw_torch_fused takes no momentum"),
        ("--optim sgd --optim_args momentun=0.9", "takes no momentun; it takes dampening, momen"),
        ("--optim galore_adamw_layerwise", "changes weights during the backward pass"),
        ("--report_to nothing", "report_to nothing: its package is not installed"),
        ("--neftune_noise_alpha 5", "this task has none"),
        ("--save_strategy steps", "save_strategy steps and eval_strategy epoch differ.*the same"),
        (
            "--eval_strategy steps --eval_steps 20 --save_steps 50",
            "save_steps 50 is no multiple of eval_steps 20, .*; write save_steps 40 or 60, or",
        ),
        (
            "--eval_strategy steps --eval_steps 20 --save_steps 0.5",
            "save_steps 0.5 and eval_steps 20 have to be both steps, or both shares",
        ),
        (
            "--early_stopping_patience 2 --eval_strategy no",
            "counts evaluations, and there are none",
        ),
    ],
)
def test_a_key_without_effect_is_an_error(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        arguments(*flags.split())
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    "flags",
    [
        "--eval_strategy steps --eval_steps 5",
        "--eval_strategy steps --eval_steps 5 --save_steps 10",
        "--eval_strategy steps --eval_steps 0.1 --save_steps 0.2",
        "--eval_strategy no --eval_steps 5",
        "--save_strategy steps --save_steps 7 --load_best_model_at_end false",
        "--save_strategy best",
        "--lr_scheduler_type cosine --warmup_steps 5",
        "--optim sgd --optim_args momentum=0.9,nesterov=true",
        "--dataloader_num_workers 1 --dataloader_persistent_workers",
        "--report_to tensorboard --run_name mine",
    ],
)
def test_keys_that_fit_are_accepted(flags: str) -> None:
    assert arguments(*flags.split()).output_dir == "runs/x/checkpoints"


@pytest.mark.parametrize(
    ("flags", "backend", "seconds"),
    [([], None, 1800), (["--ddp_backend", "gloo", "--ddp_timeout", "60"], "gloo", 60)],
)
def test_processes_meet_as_the_recipe_says(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], backend: str | None, seconds: int
) -> None:
    given: dict[str, Any] = {}
    state = SimpleNamespace(distributed_type="NO", num_processes=1)
    monkeypatch.setattr(processes, "PartialState", lambda **kwargs: given.update(kwargs) or state)
    processes.connect(recipe.load("r.yaml", flags))
    assert (given["backend"], given["timeout"]) == (backend, timedelta(seconds=seconds))


def test_early_stopping_needs_validation_rows() -> None:
    with pytest.raises(UserError, match="there are none"):
        arguments("--early_stopping_patience", "2", data=SimpleNamespace(validation=[]))
    with pytest.raises(UserError, match="early_stopping_patience: 0 has to be at least 1"):
        recipe.load("r.yaml", ["--early_stopping_patience", "0"])


@pytest.mark.parametrize(("headline", "mode"), [("accuracy", "max"), ("bits_per_byte", "min")])
def test_a_plateau_is_of_the_metric_in_its_direction(headline: str, mode: str) -> None:
    args = arguments("--lr_scheduler_type", "reduce_lr_on_plateau", headline=headline)
    assert args.lr_scheduler_kwargs == {"mode": mode}


def test_a_task_whose_loss_smooths_no_labels_refuses() -> None:
    flags = ["--label_smoothing_factor", "0.1"]
    with pytest.raises(UserError, match="label_smoothing_factor needs classes"):
        arguments(*flags)
    assert arguments(*flags, label_smoothing=0.1).label_smoothing_factor == 0.0


# --- what really happens ---------------------------------------------------------------------


def losses(run: run_directory.Run) -> list[float]:
    return [row["loss"] for row in run.history() if "loss" in row]


def test_numbers_have_no_labels_to_smooth(tiny_recipe: Path) -> None:
    write_csv(Path("reviews.csv"), [(text, str(len(text))) for text, _ in sentences(136)])
    flags = ["--problem_type", "regression", "--label_smoothing_factor", "0.1"]
    with pytest.raises(UserError, match="label_smoothing_factor needs classes"):
        train(tiny_recipe, *flags)


def test_an_optimizer_or_schedule_that_cannot_be_made_is_one_line(tiny_recipe: Path) -> None:
    for flags, message in (
        (["--adam_beta1", "2"], "optim adamw_torch_fused: Invalid beta parameter"),
        (["--optim", "galore_adamw"], "optim galore_adamw: You need to install `galore_torch`"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "lr_scheduler_type cosine_with_min_lr: "),
    ):
        with pytest.raises(UserError, match=message):
            train(tiny_recipe, *flags, "--max_steps", "1", overwrite=True)


def test_keys_that_must_not_change_a_result_do_not(tiny_recipe: Path) -> None:
    short = ["--max_steps", "4"]
    plain = losses(train(tiny_recipe, *short, "--output_dir", "runs/plain"))
    for i, flags in enumerate(
        (
            ["--activation_checkpointing"],
            ["--eval_accumulation_steps", "1"],
            ["--torch_empty_cache_steps", "1", "--eval_on_start", "--disable_tqdm"],
            ["--ddp_timeout", "60", "--eval_delay", "1", "--log_level", "error"],
        )
    ):
        found = losses(train(tiny_recipe, *short, *flags, "--output_dir", f"runs/{i}"))
        assert found == pytest.approx(plain, abs=1e-5), flags


def test_full_determinism_reaches_torch(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(
        torch, "use_deterministic_algorithms", lambda mode, **_: called.append(mode)
    )
    for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "ASCEND_LAUNCH_BLOCKING"):
        monkeypatch.setenv(name, "")
    for name in ("HCCL_DETERMINISTIC", "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.setenv(name, "")
    train(tiny_recipe, "--full_determinism", "--max_steps", "1")
    assert called
    assert all(called)


def test_keys_that_change_a_training_do(tiny_recipe: Path) -> None:
    short = ["--max_steps", "4"]
    plain = losses(train(tiny_recipe, *short, "--output_dir", "runs/plain"))
    for i, flags in enumerate(
        (
            ["--neftune_noise_alpha", "5"],
            ["--data_seed", "7"],
            ["--max_grad_norm", "0.01", "--optim", "sgd"],
            ["--warmup_steps", "0.5", "--lr_scheduler_type", "constant_with_warmup"],
        )
    ):
        found = losses(train(tiny_recipe, *short, *flags, "--output_dir", f"runs/{i}"))
        assert found[-1] != pytest.approx(plain[-1], abs=1e-6), flags


def test_the_progress_bar_can_be_turned_off(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_recipe, "--max_steps", "2")
    assert "2/2" in capsys.readouterr().err
    train(tiny_recipe, "--max_steps", "2", "--disable_tqdm", "--output_dir", "runs/quiet")
    assert "2/2" not in capsys.readouterr().err


def test_noise_on_embeddings_is_not_scaled_by_a_batch_without_padding(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_recipe, "--neftune_noise_alpha", "5", "--max_steps", "1")
    assert "batches padded: NEFTune scales its noise" in capsys.readouterr().err


def test_early_stopping_ends_at_the_first_chance_and_is_recorded(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without a learning rate nothing gets better after the first evaluation.
    flags = ["--learning_rate", "0", "--num_train_epochs", "9"]
    run = train(tiny_recipe, *flags, "--early_stopping_patience", "2")
    steps = run.results()["steps"]
    assert steps == 3 * 6
    assert run.results()["stopped_early"] is True
    assert "early_stopping_patience: 2" in (run.folder / "recipe.yaml").read_text(encoding="utf-8")
    assert "stopped at step 18: no better eval_accuracy in 2" in capsys.readouterr().err
    late = train(tiny_recipe, "--early_stopping_patience", "9", "--output_dir", "runs/late")
    assert late.results()["stopped_early"] is False
    assert "stopped at" not in capsys.readouterr().err


def test_smoothing_spreads_labels_over_the_tokens() -> None:
    from finetune.training.losses import MaskedTokenLoss, NextTokenLoss

    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 7), torch.randint(0, 7, (2, 4))
    log_p = logits.log_softmax(-1)
    right = log_p.gather(-1, labels[..., None])[..., 0]
    smooth = -(0.9 * right + 0.1 * log_p.mean(-1))
    assert torch.allclose(MaskedTokenLoss(0.1)({"logits": logits}, labels), smooth.mean())
    shifted = log_p[:, :-1].gather(-1, labels[:, 1:, None])[..., 0]
    smooth = -(0.9 * shifted + 0.1 * log_p[:, :-1].mean(-1))
    assert torch.allclose(NextTokenLoss(0.1)({"logits": logits}, labels), smooth.mean())
