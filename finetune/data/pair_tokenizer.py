"""Trains a tokenizer for a new encoder-decoder, one for sources and targets."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from finetune.errors import UserError

PADDING, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def train(
    texts: Iterable[str], size: int, pattern: str | None, where: str
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer of at most ``size`` tokens, which ends every text with ``</s>``.

    Decoding gives back the text as it was, blanks included.

    Args:
        pattern: a regular expression of a token; what it leaves out is a token, too. None for
            byte pairs (Sennrich et al. 2016; bytes as in Radford et al. 2019).
        where: names the pattern in messages.

    Raises:
        UserError: the pattern is no regular expression.
    """
    special = [PADDING, END, UNKNOWN]
    trainer: trainers.Trainer
    if pattern is None:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        try:
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
        except Exception as error:
            # tokenizers raises a bare Exception.
            raise UserError(f"{where}: {pattern!r} is no regular expression: {error}") from None
        tokenizer.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(
            vocab_size=size, special_tokens=special, show_progress=False
        )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, special.index(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PADDING,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
