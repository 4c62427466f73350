"""Baselines for tags of words, fitted in seconds on the same rows.

- the most frequent tag of each word in train, O for a word that is not in it
- logistic regression on features of a word and of those beside it
"""

import json
from collections import Counter
from typing import Any

import numpy
import pandas

from finetune.data import tagged_texts
from finetune.data.corpus import Corpus
from finetune.evaluation.entities import TaggedWords, as_rows

# Words before and after the one that is tagged, whose features count.
BESIDE = (-1, 1)


def for_words(data: Corpus) -> dict[str, numpy.ndarray]:
    """Fits the baselines on the train split and tags the words of the test split.

    Returns:
        name -> ``TaggedWords`` of N texts.
    """
    train, test = (_words(frame) for frame in (data.train, data.test))
    labels = [
        tagged_texts.word_tags(words, label)
        for words, label in zip(data.train["words"], data.train["label"], strict=True)
    ]
    index = {name: k for k, name in enumerate(data.label_names)}
    codes = [[index[tag] for tag in row] for row in labels]
    found = {
        "most frequent tag of each word": _most_frequent(train, codes, test, len(index)),
        "logistic regression on words": _linear(train, codes, test, len(index)),
    }
    places = [numpy.array(json.loads(words)) for words in data.test["words"]]
    return {
        name: as_rows([TaggedWords(*pair) for pair in zip(places, logits, strict=True)])
        for name, logits in found.items()
    }


def _words(frame: pandas.DataFrame) -> list[list[str]]:
    pairs = zip(frame["text"], frame["words"], strict=True)
    return [[text[start:end] for start, end in json.loads(words)] for text, words in pairs]


def _most_frequent(
    train: list[list[str]], codes: list[list[int]], test: list[list[str]], count: int
) -> list[numpy.ndarray]:
    seen: dict[str, Counter[int]] = {}
    for words, row in zip(train, codes, strict=True):
        for word, code in zip(words, row, strict=True):
            seen.setdefault(word, Counter())[code] += 1
    best = {word: counted.most_common(1)[0][0] for word, counted in seen.items()}
    # O is the first tag.
    return [numpy.eye(count)[[best.get(word, 0) for word in words]] for words in test]


def _linear(
    train: list[list[str]], codes: list[list[int]], test: list[list[str]], count: int
) -> list[numpy.ndarray]:
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.linear_model import LogisticRegression

    hasher = FeatureHasher(2**18, input_type="string")
    flat = [code for row in codes for code in row]
    if len(set(flat)) < 2:
        return [numpy.eye(count)[[flat[0]] * len(words)] for words in test]
    # Weak regularisation, as for texts.
    model: Any = LogisticRegression(C=10, max_iter=200, tol=1e-3)
    model.fit(hasher.transform([f for words in train for f in features(words)]), flat)
    logits = numpy.full((sum(map(len, test)), count), -numpy.inf)
    found = hasher.transform([f for words in test for f in features(words)])
    logits[:, model.classes_] = model.predict_log_proba(found)
    return numpy.split(logits, numpy.cumsum([len(words) for words in test])[:-1])


def features(words: list[str]) -> list[list[str]]:
    """Returns the features of each word of a text: its form, its affixes, and its neighbours."""
    own = [_own(word) for word in words]
    return [
        [
            "always",
            *own[i],
            *(
                f"{by}:{name}"
                for by in BESIDE
                for name in (own[i + by] if 0 <= i + by < len(words) else ["none"])
            ),
        ]
        for i in range(len(words))
    ]


def _own(word: str) -> list[str]:
    # Xxxx-00 -> Xx-0
    shape = "".join("X" if c.isupper() else "x" if c.islower() else c for c in word)
    shape = "".join("0" if c.isdigit() else c for c in shape)
    short = "".join(c for c, before in zip(shape, " " + shape, strict=False) if c != before)
    low = word.lower()
    return [f"w={low}", f"s={short}", f"p3={low[:3]}", f"e3={low[-3:]}", f"e2={low[-2:]}"]
