"""peft's prompt methods generate text with the names of every tested version of transformers."""

import inspect

import pytest
import torch
from peft import PeftConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from finetune.models.prompt_cache import accept_past_key_values


@pytest.mark.parametrize("config", [PrefixTuningConfig, PromptTuningConfig])
def test_generation_with_a_cache_gives_the_tokens_of_one_without(config: type[PeftConfig]) -> None:
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 100, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes, pad_token_id=0, eos_token_id=0)).eval()
    # Weights so large that the next token depends on those before it.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    accept_past_key_values(model)
    assert "past_key_values" in inspect.signature(model.forward).parameters
    adapted = get_peft_model(model, config(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    mask = torch.ones_like(tokens)
    found = adapted.generate(
        input_ids=tokens, attention_mask=mask, max_new_tokens=12, min_new_tokens=12, do_sample=False
    )
    for _ in range(12):
        with torch.no_grad():
            logits = adapted(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        logits[..., 0] = -torch.inf
        tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert found.tolist() == tokens.tolist()
    assert len(set(tokens[0].tolist())) > 8
