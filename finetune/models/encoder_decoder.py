"""Encoder-decoders: their configs, weights, and settings of generation.

A checkpoint is an encoder-decoder (T5, BART, Marian, NLLB), or an encoder such as BERT, whose
weights then start both parts (Rothe et al. 2020); the attention from the decoder to the encoder is
new.
"""

import copy
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

from finetune.data.sources import Checkpoint
from finetune.errors import UserError, refuse_unknown
from finetune.recipe import Recipe

TWICE = "encoder-decoder"
# What a new model takes from its tokenizer.
SPECIAL = ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id")


class AutoEncoderDecoder(AutoModelForSeq2SeqLM):
    """``AutoModelForSeq2SeqLM``, which also starts both parts from an encoder's checkpoint."""

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **options: Any) -> Any:
        config = options.get("config")
        if (
            not isinstance(config, EncoderDecoderConfig)
            or AutoConfig.from_pretrained(folder).model_type == TWICE
        ):
            return super().from_pretrained(folder, *args, **options)
        options.pop("config")
        both: Any = {
            f"{part}_{name}": value
            for part in ("encoder", "decoder")
            for name, value in options.items()
        }
        both |= {"encoder_config": config.encoder, "decoder_config": config.decoder}
        model = EncoderDecoderModel.from_encoder_decoder_pretrained(folder, folder, **both)
        model.config = config
        return model


def starts_new(config: PreTrainedConfig, checkpoint: Checkpoint) -> bool:
    """Returns whether the model has weights that no checkpoint trained."""
    if checkpoint.is_new:
        return True
    return config.model_type == TWICE != AutoConfig.from_pretrained(checkpoint.folder).model_type


def check(config: PreTrainedConfig, checkpoint: Checkpoint) -> None:
    """Checks that a checkpoint is an encoder-decoder or can start one.

    Raises:
        UserError: it is another kind of model.
    """
    if type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return
    encodes = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if not encodes or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        other = "an encoder that cannot decode" if encodes else "no encoder"
        raise UserError(
            f"{checkpoint.name}: {config.model_type} is {other}; take T5, BART, Marian, BERT or "
            "RoBERTa, or for decoders task: text-generation with prompt and completion"
        )


def complete(config: Any, tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint) -> Any:
    """Returns the config of the whole model, with the tokenizer's special tokens where it is new.

    An encoder's config becomes that of a model which has it twice.
    """
    twice = type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if twice:
        decoder = copy.deepcopy(config)
        decoder.is_decoder = decoder.add_cross_attention = True
        config.use_cache = decoder.use_cache = False
        config = EncoderDecoderConfig.from_encoder_decoder_configs(config, decoder)
    if twice or checkpoint.is_new:
        config.pad_token_id = tokenizer.pad_token_id
        config.eos_token_id = _end(tokenizer)
        config.bos_token_id = config.decoder_start_token_id = _start(tokenizer)
    # With a cache of keys and values every batch would return it, which training does not need.
    config.use_cache = False
    return config


def _start(tokenizer: Any) -> int:
    """The token that a new decoder starts with: BERT's [CLS], else padding, as in T5."""
    return tokenizer.pad_token_id if tokenizer.cls_token is None else tokenizer.cls_token_id


def _end(tokenizer: Any) -> int:
    return tokenizer.sep_token_id if tokenizer.eos_token is None else tokenizer.eos_token_id


def set_generation(model: Any, tokenizer: Any, recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Sets how the model generates, and is saved to generate.

    The checkpoint's own settings stay, apart from the length, the target's language and the values
    of ``generation``.

    Raises:
        UserError: a setting that transformers does not have, or that does not fit another.
    """
    given, where = recipe.model.generation, recipe.where("model.generation")
    known = list(GenerationConfig().to_dict())
    for name in given:
        if name not in known:
            refuse_unknown(name, known, f"{where}: generation key")
    if starts_new(model.config, checkpoint):
        values = {name: getattr(model.config, name) for name in SPECIAL}
    else:
        values = {n: v for n, v in model.generation_config.to_dict().items() if n in known}
    values |= {"max_length": None, "max_new_tokens": recipe.model.max_target_length}
    values["use_cache"] = True
    if recipe.data.target_language:
        code = language(tokenizer, recipe.data.target_language, recipe, "target_language")
        values["forced_bos_token_id"] = code
    try:
        made = GenerationConfig(**values | given)
        # A checkpoint's own settings may contradict each other; the user's may not.
        made.validate(strict=bool(given))
        if made.num_return_sequences not in {None, 1} or made.return_dict_in_generate:
            raise ValueError("one text for each source is written, and nothing else")
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())[:200]}") from None
    model.generation_config = made


# --- languages -------------------------------------------------------------------------------


def languages(tokenizer: Any) -> list[str]:
    """Returns the tokens of a multilingual tokenizer's languages; none for any other."""
    if "src_lang" not in tokenizer.init_kwargs:
        return []
    tokens = tokenizer.all_special_tokens
    return [token for token in tokens if token.strip("_").split("_")[0].isalpha()]


def language(tokenizer: Any, code: str, recipe: Recipe, key: str) -> int:
    """Returns the token of a language.

    Raises:
        UserError: the tokenizer has no such language, or none at all.
    """
    known, where = languages(tokenizer), recipe.where(f"data.{key}")
    if not known:
        raise UserError(
            f"{where}: {key} is for multilingual tokenizers such as NLLB's; "
            f"{type(tokenizer).__name__} has no languages, so write it into source_prefix"
        )
    # M2M100 writes the language en as __en__.
    for token in (code, f"__{code}__"):
        if token in known:
            return tokenizer.convert_tokens_to_ids(token)
    refuse_unknown(code, [token.strip("_") for token in known], f"{where}: {key}")


def set_languages(tokenizer: Any, recipe: Recipe) -> None:
    """Sets the languages of a multilingual tokenizer, and what it is saved with.

    Raises:
        UserError: the recipe does not name both languages, or one that the tokenizer has not.
    """
    for key, attribute in (("source_language", "src_lang"), ("target_language", "tgt_lang")):
        code = getattr(recipe.data, key)
        if code is not None:
            language(tokenizer, code, recipe, key)
            setattr(tokenizer, attribute, code)
            tokenizer.init_kwargs[attribute] = code
        elif languages(tokenizer):
            raise UserError(
                f"{recipe.name}: {type(tokenizer).__name__} has many languages; name yours by "
                f"{key}:"
            )
