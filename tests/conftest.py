"""Tiny checkpoints and tables made on the spot: no network, no waiting."""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from finetune.recipe import Recipe
    from finetune.run_directory import Run
    from finetune.training.job import Job

WORDS = ["good", "great", "fine", "bad", "awful", "poor", "film", "plot", "the", "a", "was", "cast"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# They take longest, and start first, so that no worker is left with one of them at the end.
LONGEST = ("test_torture", "test_documentation", "test_tuning", "test_processes", "test_resume")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; the rest keeps its order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of each test's own, also of what transformers knows of the machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    if loaded := sys.modules.get("transformers.utils.import_utils"):
        loaded.is_torch_cuda_available.cache_clear()


def make_bert(folder: Path, words: list[str]) -> Path:
    """Saves a two-layer BERT with random weights for a vocabulary of these words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(SPECIAL + words) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT with random weights and a vocabulary of a dozen words."""
    return make_bert(tmp_path_factory.mktemp("tiny-bert"), WORDS)


def make_writer(folder: Path, kind: str = "llama") -> Path:
    """A two-layer GPT-2 or Llama with random weights and a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, LlamaConfig, PreTrainedTokenizerFast
    from transformers.models.auto import AutoModelForCausalLM

    tokenizer = Tokenizer(
        models.BPE(
            {c: i for i, c in enumerate(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())])},
            [],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    size = {"vocab_size": len(fast), "eos_token_id": 0, "bos_token_id": 0}
    if kind == "gpt2":
        drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config: Any = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, **drops, **size)
    else:
        config = LlamaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=128,
            **size,
        )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Different texts with a label that their words decide."""
    draw, seen = random.Random(seed), {}
    while len(seen) < count:
        label = draw.choice(["negative", "positive"])
        opinion = draw.choice(WORDS[:3] if label == "positive" else WORDS[3:6])
        rest = draw.choices(WORDS[6:], k=draw.randint(2, 9))
        rest.insert(draw.randrange(len(rest)), opinion)
        seen[" ".join(rest)] = label
    return list(seen.items())


def write_csv(path: Path, rows: list[tuple[str, str]], header: str = "text,label") -> Path:
    """A CSV file of rows without commas in them."""
    lines = [header, *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: runs stay inside it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def interrupted(build: "Callable[[Recipe], Job]") -> "Callable[[Recipe], Job]":
    """A task's ``build`` whose job is stopped, as by Ctrl-C, at its second evaluation."""

    def stop(read: "Recipe") -> "Job":
        job = build(read)
        kept, calls = job.score, []

        def score(*arguments: object) -> dict:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return kept(*arguments)

        job.score = score
        return job

    return stop


def train(
    path: Path, *flags: str, build: "Callable[[Recipe], Job] | None" = None, **how: Any
) -> "Run":
    """Trains a recipe in this process, by its task's ``build`` unless another is given."""
    from finetune import recipe, tasks
    from finetune.training import runner

    read = recipe.load(path, flags)
    run = runner.train(read, build or tasks.find(read.task).build, **how)
    assert run is not None
    return run


def train_job(path: Path, *flags: str) -> "tuple[Run, Job]":
    """Trains a recipe in this process and returns the run and the job whose model was trained."""
    from finetune import tasks

    jobs: list[Job] = []

    def build(read: "Recipe") -> "Job":
        jobs.append(tasks.find(read.task).build(read))
        return jobs[0]

    return train(path, *flags, build=build), jobs[0]


def resume_to_the_bit(path: Path, build: "Callable[[Recipe], Job]", *flags: str) -> None:
    """Stops a training at its second evaluation; resumed, it has to end like an undisturbed one."""
    whole, undisturbed = train_job(path, *flags, "--output_dir", "runs/whole")
    with pytest.raises(KeyboardInterrupt):
        train(path, *flags, build=interrupted(build))
    jobs: list[Job] = []

    def again(read: "Recipe") -> "Job":
        jobs.append(build(read))
        return jobs[0]

    run = train(path, *flags, build=again, resume=True)
    assert run.history() == whole.history()
    assert run.results()["metrics"] == whole.results()["metrics"]
    expected = undisturbed.model.state_dict()
    assert all(v.equal(expected[k]) for k, v in jobs[0].model.state_dict().items())


@pytest.fixture
def tiny_recipe(workdir: Path, tiny_bert: Path) -> Path:
    """A recipe that trains the tiny BERT on 96 made-up reviews in about a second."""
    write_csv(workdir / "reviews.csv", sentences(136))
    path = workdir / "tiny.yaml"
    path.write_text(
        f"""\
task: text-classification
model: {{checkpoint: "{tiny_bert}", max_length: 16}}
data: {{train: reviews.csv, holdout: 24, validation_size: 16}}
training:
  learning_rate: 2.0e-3
  per_device_train_batch_size: 16
  num_train_epochs: 2
  lr_scheduler_type: constant
  logging_steps: 1
  use_cpu: true
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Lets the children of a study train in the test's process; the words of each so far."""
    from finetune.studies import children
    from tests.children import Ended, trained

    every: list[list[str]] = []

    def start(words: list[str], log: IO[bytes], threads: int | None) -> Ended:
        every.append(words)
        return trained(words, log)

    monkeypatch.setattr(children, "start", start)
    return every
