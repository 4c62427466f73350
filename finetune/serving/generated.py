"""What an answer to a prompt is counted by."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Generated:
    """Tokens of the prompt and of the answer; why it ended, ``stop`` or ``length``."""

    prompt_tokens: int
    tokens: int
    reason: str
