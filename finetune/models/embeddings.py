"""Encoders whose output is the embedding of a text, and the files of sentence-transformers.

- An embedding is what the checkpoint's own pooling makes of the last hidden states (the mean of a
  text's tokens where it names none), with length 1, so that a dot product is the cosine.
- The weights are those of the plain encoder: ``AutoModel`` loads the folder, too.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from finetune.data.sources import Checkpoint
from finetune.errors import UserError

# The key of config.json that keeps the pooling, by sentence-transformers' name.
POOLING = "sentence_pooling"
FOLDER = "1_Pooling"
MODULES = ("Transformer", "Pooling", "Normalize")


class ForEmbeddings:
    """What a family's encoder with pooled outputs adds to the family's ``PreTrainedModel``."""

    # The Trainer would pass what losses need to the encoder.
    accepts_loss_kwargs = False

    def __init__(self: Any, config: Any) -> None:
        from sentence_transformers.sentence_transformer.modules import Pooling

        super().__init__(config)  # pyright: ignore[reportCallIssue]
        encoder: Any = MODEL_MAPPING[type(config)]
        setattr(self, self.base_model_prefix, encoder(config))
        self.pooling = Pooling(config.hidden_size, getattr(config, POOLING))
        self.post_init()

    def forward(
        self: Any,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> ModelOutput:
        """Token ids and mask (B, T) -> ``logits``, the embeddings (B, H)."""
        out = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **options)
        given = {"token_embeddings": out.last_hidden_state, "attention_mask": attention_mask}
        return ModelOutput(
            logits=functional.normalize(self.pooling(given)["sentence_embedding"], dim=-1)
        )


class AutoModelForEmbeddings:
    """Loads the encoder of any family as ``ForEmbeddings``; called like a class of transformers."""

    @staticmethod
    def _class(config: Any) -> Any:
        encoder: Any = MODEL_MAPPING[type(config)]
        family = next(c for c in encoder.__mro__[1:] if issubclass(c, PreTrainedModel))
        # The name becomes the architecture in config.json, which others read for the encoder.
        return type(encoder.__name__, (ForEmbeddings, family), {})

    @classmethod
    def from_config(cls, config: Any) -> PreTrainedModel:
        return _frozen_pooler(cls._class(config)._from_config(config))

    @classmethod
    def from_pretrained(cls, folder: Any, **options: Any) -> PreTrainedModel:
        config = options.pop("config", None) or AutoConfig.from_pretrained(folder)
        return _frozen_pooler(cls._class(config).from_pretrained(folder, config=config, **options))


def _frozen_pooler(model: Any) -> Any:
    """Returns the model with the pooler as the checkpoint has it: nothing here reads it."""
    pooler = getattr(model.base_model, "pooler", None)
    if pooler is not None:
        pooler.requires_grad_(False)
    return model


def complete(config: Any, checkpoint: Checkpoint) -> Any:
    """Returns the config of an encoder with the checkpoint's own pooling.

    Raises:
        UserError: the model is no encoder, or its embeddings need further layers.
    """
    kind = config.model_type
    if type(config) not in MODEL_MAPPING or config.is_encoder_decoder:
        raise UserError(f"{checkpoint.name}: {kind} is no encoder; take BERT or a relative")
    encoder: Any = MODEL_MAPPING[type(config)]
    names = inspect.signature(encoder.forward).parameters
    if "input_ids" not in names or "attention_mask" not in names:
        raise UserError(f"{checkpoint.name}: {kind} takes no text; take BERT or a relative")
    setattr(config, POOLING, getattr(config, POOLING, None) or _own_pooling(checkpoint))
    return config


def _own_pooling(checkpoint: Checkpoint) -> Any:
    """Returns the pooling of a folder of sentence-transformers; the mean for another one."""
    listed = checkpoint.folder / "modules.json"
    if not listed.is_file():
        return "mean"
    from sentence_transformers.sentence_transformer.modules import Pooling

    modules = json.loads(listed.read_text(encoding="utf-8"))
    kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    others = [kind for kind in kinds if kind not in MODULES]
    if others or "Pooling" not in kinds:
        what = f"a module {others[0]}" if others else "no pooling"
        raise UserError(
            f"{checkpoint.name}: its embeddings have {what}, which is not trained here; take a "
            "checkpoint of an encoder with pooling"
        )
    return Pooling.load(str(checkpoint.folder), subfolder=kinds["Pooling"]).pooling_mode


def save_modules(config: Any, max_length: int, folder: Path) -> None:
    """Writes what ``SentenceTransformer`` reads beside the model: pooling, length, similarity."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    paths = dict(zip(MODULES, ("", FOLDER, "2_Normalize"), strict=True))
    inside = ("base.modules.transformer", "sentence_transformer.modules.pooling")
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": paths[kind],
            "type": f"sentence_transformers.{where}.{kind}",
        }
        for number, (kind, where) in enumerate(
            zip(MODULES, (*inside, "base.modules.normalize"), strict=True)
        )
    ]
    (folder / FOLDER).mkdir(exist_ok=True)
    Pooling(config.hidden_size, getattr(config, POOLING)).save(str(folder / FOLDER))
    written = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": max_length},
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine", "prompts": {}},
    }
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
