"""The only ``Trainer`` in the project: batches, averaged weights, layer-wise learning rates."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from finetune import averaging, tuning
from finetune.errors import Refusal
from finetune.sampling import StepSampler


class StepTrainer(Trainer):
    """The Trainer with batches that do not depend on the number of processes.

    Evaluation goes through the rows in the order given, each once, whatever the sampling strategy;
    layer-wise learning rates are the optimizer's parameter groups; nothing is pickled. What is
    evaluated, and the model in the end, is of averaged weights where ``ema_decay`` asks for them;
    a checkpoint has both.
    """

    def __init__(self, *, layer_decay: float, ema_decay: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer_decay = layer_decay
        self.averages = averaging.Averages(self.accelerator.unwrap_model(self.model), ema_decay)
        self.add_callback(self.averages)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.averages.in_place():
            return super().evaluate(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        rows, args = train_dataset or self.train_dataset, self.args
        assert isinstance(rows, Dataset)
        if args.train_sampling_strategy not in {"random", "group_by_length"}:
            raise Refusal(
                f"train_sampling_strategy {args.train_sampling_strategy!r} is not supported; "
                "random and group_by_length are"
            )
        grouped = args.train_sampling_strategy == "group_by_length"
        return StepSampler(
            rows=len(rows),
            lengths=self.lengths if grouped else None,
            step_rows=self._train_batch_size * args.gradient_accumulation_steps * args.world_size,
            accumulation=args.gradient_accumulation_steps,
            processes=args.world_size,
            rank=args.process_index,
            seed=args.data_seed if args.data_seed is not None else args.seed,
        )

    def get_train_dataloader(self) -> DataLoader:
        # The Trainer drops all columns the model does not know before it asks for the sampler.
        assert isinstance(self.train_dataset, Dataset)
        self.lengths = self.train_dataset["length"]
        return super().get_train_dataloader()

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[Any] | None:
        return None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.layer_decay < 1 and self.optimizer is None:
            learner = model or self.model
            assert isinstance(learner, torch.nn.Module)
            cls, options = self.get_optimizer_cls_and_kwargs(self.args)
            groups = tuning.parameter_groups(
                learner,
                set(self.get_decay_parameter_names(learner)),
                self.args.learning_rate,
                self.args.weight_decay,
                self.layer_decay,
            )
            self.optimizer = cls(groups, **options)
        return super().create_optimizer(model)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            # Another process writes, and the folder may not be there yet.
            return
        # A pickle of the arguments; recipe.yaml says the same and can be read by anyone.
        folder = Path(output_dir or str(self.args.output_dir))
        (folder / "training_args.bin").unlink(missing_ok=True)
        if folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            tuning.save_encoder(self.accelerator.unwrap_model(self.model), folder)
            self.averages.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        learner = self.accelerator.unwrap_model(model or self.model)
        tuning.load_encoder(learner, Path(resume_from_checkpoint))
        self.averages.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = Path(str(self.state.best_model_checkpoint))
        tuning.load_encoder(self.accelerator.unwrap_model(self.model), best)
        self.averages.load(best)
