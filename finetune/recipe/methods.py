"""The tuning methods a recipe can name, without importing peft.

peft's own methods are listed by ``recipe.adapters``; here is what this project adds to that list:
the methods without an adapter, the ones it does not offer, and the default learning rates.
"""

# Methods that save a plain checkpoint; the others save an adapter folder.
CONTRASTIVE = "contrastive"
PLAIN_METHODS = ["full", "head", "bitfit", CONTRASTIVE]
# Used when a recipe sets no learning rate. For adapters see recipes/rotten_tomatoes/README.md.
ADAPTER_LEARNING_RATE = 1e-3
LEARNING_RATES = {
    **{"full": 5e-5, "head": 3e-3, "bitfit": 1e-3, CONTRASTIVE: 5e-5},
    **{"ia3": 1e-2, "vera": 1e-2, "prefix_tuning": 1e-2, "prompt_tuning": 1e-2},
}
# Methods of peft that are not offered, and why. All others are, including those of later releases.
NOT_OFFERED = {
    "adaption_prompt": "it is for decoders like Llama only",
    "cpt": "it is for causal language models only",
    "multitask_prompt_tuning": "it needs a task id with every row",
    "poly": "it needs a task id with every row",
    "shadow": "it is for decoders only",
    "trainable_tokens": "it learns the vectors of named tokens, not a task",
    "xlora": "it mixes adapters that were trained before",
}

# The same for initializations of LoRA.
INITS_NOT_OFFERED = {
    "corda": "it needs the activations of a pass over the data, which is not made here",
    "eva": "it needs the activations of a pass over the data, which is not made here",
    "loftq": "it changes the base's weights, which are not saved with the adapter; use pissa",
}


def learning_rate(method: str) -> float:
    """Returns the learning rate for recipes that set none."""
    return LEARNING_RATES.get(method, ADAPTER_LEARNING_RATE)
