"""What a model has to beat: answers that cost seconds, on the same rows."""

from typing import Any

import numpy
import pandas
from numpy.typing import ArrayLike
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from finetune.data.corpus import Corpus

MAJORITY = "majority class"
ENOUGH_TEXTS = 1000


def for_texts(data: Corpus) -> dict[str, numpy.ndarray]:
    """What the trivial answers for texts say of the test split, learned from the train split.

    Word 1- and 2-grams with sublinear term frequency, without those of a single text where there
    are texts enough, and little regularisation: the best of a few settings on IMDB's validation
    rows, so that it is no straw man.

    Returns:
        name -> logits (N, K), or (N, 1) predicted numbers for regression.
    """

    def texts(frame: pandas.DataFrame) -> list[str]:
        pairs = frame["text_pair"] if "text_pair" in frame else [""] * len(frame)
        return [f"{a}\n{b}" for a, b in zip(frame["text"], pairs, strict=True)]

    train, test = texts(data.train), texts(data.test)
    rarest = 2 if len(train) >= ENOUGH_TEXTS else 1
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=rarest)
    labels = numpy.array(data.train["label"].tolist())
    if data.problem_type == "regression":
        models = {"TF-IDF + ridge regression": Ridge()}
    else:
        models = {"TF-IDF + logistic regression": LogisticRegression(C=10, max_iter=1000)}
    return _answers(data, words.fit_transform(train), words.transform(test), labels, models)


def for_images(
    data: Corpus, train: numpy.ndarray, labels: numpy.ndarray, test: numpy.ndarray
) -> dict[str, numpy.ndarray]:
    """The same for images, from their pixels: a linear model and the three nearest neighbours.

    Args:
        train: (M, F) float in [0, 1], pixels of training rows; ``labels`` are theirs.
        test: (N, F), of every test row.
    """
    if data.problem_type == "regression":
        models: dict[str, Any] = {
            "ridge regression on pixels": Ridge(),
            "3 nearest neighbours on pixels": KNeighborsRegressor(3),
        }
    else:
        models = {
            "logistic regression on pixels": LogisticRegression(C=0.1, max_iter=200),
            "3 nearest neighbours on pixels": KNeighborsClassifier(3),
        }
    return _answers(data, train, test, labels, models)


def _answers(
    data: Corpus, train: Any, test: Any, labels: numpy.ndarray, models: dict[str, Any]
) -> dict[str, numpy.ndarray]:
    """Logits (N, K) of each model and of the answer that looks at nothing."""
    if data.problem_type == "regression":
        models = {"mean of train": DummyRegressor()} | models
        return {n: m.fit(train, labels).predict(test)[:, None] for n, m in models.items()}
    models = {MAJORITY: DummyClassifier(strategy="prior")} | models
    if data.problem_type == "multi_label_classification":
        models = {name: OneVsRestClassifier(model) for name, model in models.items()}
    return {
        name: _logits(model.fit(train, labels).predict_proba(test), labels, data)
        for name, model in models.items()
    }


def _logits(probabilities: ArrayLike, labels: numpy.ndarray, data: Corpus) -> numpy.ndarray:
    """(N, K) logits of probabilities, with classes that train never showed at almost nothing."""
    clipped = numpy.clip(numpy.asarray(probabilities), 1e-12, 1 - 1e-12)
    if data.problem_type == "multi_label_classification":
        return numpy.log(clipped / (1 - clipped))
    out = numpy.full((len(clipped), len(data.label_names)), numpy.log(1e-12))
    out[:, numpy.unique(labels)] = numpy.log(clipped)
    return out
