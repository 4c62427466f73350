"""Packed documents: the same loss, logits and gradient as each document alone."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from finetune.data import packing, readers
from finetune.data.packing import IGNORED
from finetune.recipe import Data
from finetune.training import losses
from tests.conftest import make_writer, sentences

SIZE = 96


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_writer(tmp_path_factory.mktemp(request.param), request.param)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    loaded.config.use_cache = False
    # Freshly initialized weights hardly attend to anything; these do.
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in loaded.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return loaded.eval()


def documents() -> list[dict[str, list[int]]]:
    ids = [[b % 250 + 1 for b in text.encode()] for text, _ in sentences(12)]
    return [{"input_ids": each, "labels": list(each)} for each in ids]


def packed() -> tuple[list[list[int]], dict[str, torch.Tensor]]:
    found = documents()
    shared = packing.pack([len(each["input_ids"]) for each in found], SIZE)
    rows = [packing.block([found[i] for i in chosen]) for chosen in shared]
    return shared, packing.Collator(0)(rows)


def test_blocks_hold_every_document_once_and_little_else() -> None:
    lengths = [int(n) for n in torch.randint(1, 100, (500,), generator=torch.manual_seed(0))]
    shared = packing.pack(lengths, 100)
    assert sorted(i for block in shared for i in block) == list(range(500))
    filled = [sum(lengths[i] for i in block) for block in shared]
    assert max(filled) <= 100
    assert sum(filled) / (100 * len(shared)) > 0.97
    assert packing.pack(lengths, 100) == shared
    assert packing.pack([], 100) == []


def test_packed_and_unpacked_losses_agree(model: Any) -> None:
    shared, batch = packed()
    assert max(len(block) for block in shared) > 1
    with torch.no_grad():
        together = losses.NextTokenLoss()(
            model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]), batch["labels"]
        )
        total, tokens = 0.0, 0
        for document in documents():
            ids = torch.tensor([document["input_ids"]])
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
    assert float(together) == pytest.approx(total / tokens, abs=1e-5)


def test_packed_and_unpacked_losses_agree_on_real_reviews(model: Any) -> None:
    rows = readers.dataset(Data(dataset="embedded:imdb"))[0]["train"].rows
    # Bytes are the tokens here, and long reviews are cut into pieces.
    ids = [[b % 250 + 1 for b in text.encode()] for text in rows["text"][:12]]
    pieces = [row[i : i + SIZE] for row in ids for i in range(0, len(row), SIZE)]
    found = [{"input_ids": piece, "labels": list(piece)} for piece in pieces if len(piece) > 1]
    shared = packing.pack([len(each["input_ids"]) for each in found], SIZE)
    assert max(len(block) for block in shared) > 1
    batch = packing.Collator(0)([packing.block([found[i] for i in block]) for block in shared])
    labels = batch.pop("labels")
    with torch.no_grad():
        together = losses.NextTokenLoss()(model(**batch), labels)
        nats = [
            model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1)
            for ids in (torch.tensor([each["input_ids"]]) for each in found)
        ]
    tokens = sum(len(each["input_ids"]) - 1 for each in found)
    assert float(together) == pytest.approx(float(sum(nats)) / tokens, abs=1e-5)


def test_a_token_changes_no_logit_of_another_document(model: Any) -> None:
    _, batch = packed()
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    starts = (inputs["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    assert len(starts) >= 3
    middle = slice(starts[1], starts[2])
    changed = inputs["input_ids"].clone()
    changed[0, starts[1] + 1] += 1
    with torch.no_grad():
        before = model(**inputs).logits[0]
        after = model(**inputs | {"input_ids": changed}).logits[0]
    differs = (before != after).any(1)
    assert differs[middle][1:].all()
    differs[middle] = False
    assert not differs.any()


def test_a_prompts_labels_change_nothing_in_the_gradient(model: Any) -> None:
    found = documents()[:2]
    whole = packing.Collator(0)([packing.block(found)])
    for document in found:
        document["labels"][:5] = [IGNORED] * 5
    gradients = []
    for replaced in (IGNORED, 7):
        batch = packing.Collator(0)([packing.block(found)])
        # The label at position 0 is never used.
        batch["labels"][:, 0] = replaced
        gradients.append(gradient(model, batch))
    assert torch.equal(*gradients)
    assert not torch.equal(gradients[0], gradient(model, whole))


def gradient(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    model.zero_grad()
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    losses.NextTokenLoss()(model(**inputs), batch["labels"]).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_a_model_that_leaks_is_detected(model: Any) -> None:
    assert packing.is_kept_apart(model)
    # With a cache, transformers treats a block as one document.
    model.config.use_cache = True
    assert not packing.is_kept_apart(model)
    model.config.use_cache = False


def test_a_model_without_positions_is_not_packed() -> None:
    class Recurrent(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids: torch.Tensor) -> None: ...

    assert not packing.is_kept_apart(Recurrent())


def test_byte_counts_reach_the_batch() -> None:
    rows = [{"input_ids": [1] * n, "labels": [1] * n, "bytes": 3 * n} for n in (2, 5)]
    batch = packing.Collator(0, packs=False)(rows)
    assert batch["bytes"].tolist() == [6, 15]
    assert set(batch) == {"input_ids", "labels", "bytes"}
    assert "bytes" not in packed()[1]
