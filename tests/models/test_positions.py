"""How many tokens a model has positions for."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, MPNetConfig, RobertaConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from finetune import recipe
from finetune.errors import UserError
from finetune.models import positions
from finetune.tasks import text_classification

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 34,
}


@pytest.mark.parametrize(
    "config",
    [RobertaConfig(**SIZES), RobertaConfig(**SIZES, pad_token_id=5), MPNetConfig(**SIZES)],
    ids=["roberta", "roberta-pad-5", "mpnet"],
)
def test_positions_after_the_padding_index_are_as_many_as_the_model_takes(
    config: transformers.PreTrainedConfig,
) -> None:
    model = AutoModel.from_config(config)
    most = positions.most_tokens(config)
    model(input_ids=torch.full((1, most), 7))
    with pytest.raises((IndexError, RuntimeError), match="index"):
        model(input_ids=torch.full((1, most + 1), 7))


def test_every_model_type_of_that_kind_is_listed() -> None:
    models = Path(transformers.__file__).parent / "models"
    pattern = (
        r"position_embeddings = \w*\.?(?:Quant)?Embedding\([^()]*padding_idx=self\.padding_idx"
    )
    found = {
        file.parent.name
        for file in models.glob("*/modeling_*.py")
        if re.search(pattern, file.read_text(encoding="utf-8"))
    }
    listed = {kind.replace("-", "_") for kind in positions.AFTER_PADDING}
    listed = {"data2vec" if kind == "data2vec_text" else kind for kind in listed}
    # Parts of models that are not for texts alone.
    others = {"altclip", "bridgetower", "clap", "evolla", "pp_doclayout_v2"}
    assert found - others == listed
    assert set(MODEL_MAPPING_NAMES) >= positions.AFTER_PADDING


def test_models_without_a_limit_have_none() -> None:
    assert positions.most_tokens(AutoConfig.for_model("t5")) == 10**9
    assert positions.most_tokens(AutoConfig.for_model("gpt2", n_positions=64)) == 64


def test_a_text_longer_than_robertas_positions_is_refused_with_their_number(
    tiny_recipe: Path, tiny_bert: Path
) -> None:
    folder = Path("roberta")
    shutil.copytree(tiny_bert, folder)
    AutoModel.from_config(RobertaConfig(**SIZES, pad_token_id=0)).save_pretrained(folder)
    flags = ["--checkpoint", "roberta", "--max_length"]
    with pytest.raises(UserError, match=r"max_length 34 is more than the model's 33$"):
        text_classification.TASK.build(recipe.load(tiny_recipe, [*flags, "34"]))
    assert text_classification.TASK.build(recipe.load(tiny_recipe, [*flags, "33"])).model
