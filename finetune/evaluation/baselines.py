"""Baselines that a fine-tuned model has to beat, fitted in seconds on the same rows.

- classification: the majority class, logistic regression, for images also nearest neighbours
- regression: the mean, ridge regression, for images also nearest neighbours

Features are TF-IDF of words for texts, pixels for images.
"""

from typing import Any

import numpy
import pandas
from numpy.typing import ArrayLike

from finetune.data.corpus import Corpus

# scikit-learn is imported inside functions: tasks import this module, finetune predict imports
# tasks, and only training needs baselines.

MAJORITY = "majority class"
MANY_TEXTS = 1000


def for_texts(data: Corpus) -> dict[str, numpy.ndarray]:
    """Fits the baselines for texts on the train split and predicts the test split.

    TF-IDF covers word 1- and 2-grams with sublinear term frequency; with many training texts,
    those of a single text are left out. Regularisation is weak. These settings were the best of a
    few on IMDB's validation rows, so that the baseline is a strong one.

    Returns:
        name -> logits (N, K); predicted values (N, 1) for regression.
    """
    from sklearn.linear_model import Ridge

    def texts(frame: pandas.DataFrame) -> list[str]:
        pairs = frame["text_pair"] if "text_pair" in frame else [""] * len(frame)
        return [f"{a}\n{b}" for a, b in zip(frame["text"], pairs, strict=True)]

    train, test = texts(data.train), texts(data.test)
    words = word_features(len(train))
    labels = numpy.array(data.train["label"].tolist())
    if data.problem_type == "regression":
        models = {"TF-IDF + ridge regression": Ridge()}
    else:
        models = {"TF-IDF + logistic regression": linear_classifier()}
    return _predictions(data, words.fit_transform(train), words.transform(test), labels, models)


def word_features(rows: int) -> Any:
    """Returns the TF-IDF vectorizer of the baselines, for so many training texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    min_texts = 2 if rows >= MANY_TEXTS else 1
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=min_texts)


def linear_classifier() -> Any:
    """Returns the linear classifier of the baselines on TF-IDF features."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=10, max_iter=1000)


def for_images(
    data: Corpus, train: numpy.ndarray, labels: numpy.ndarray, test: numpy.ndarray
) -> dict[str, numpy.ndarray]:
    """Fits the baselines for images on pixels and predicts the test split, as ``for_texts``.

    Args:
        train: (M, F) float in [0, 1], pixels of training rows.
        labels: the labels of those M rows.
        test: (N, F), pixels of every test row.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

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
    return _predictions(data, train, test, labels, models)


def _predictions(
    data: Corpus, train: Any, test: Any, labels: numpy.ndarray, models: dict[str, Any]
) -> dict[str, numpy.ndarray]:
    """Fits each model, and one that ignores its input; returns their logits (N, K) by name."""
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.multiclass import OneVsRestClassifier

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
    """Logits (N, K) of probabilities; classes that do not occur in train get almost none."""
    clipped = numpy.clip(numpy.asarray(probabilities), 1e-12, 1 - 1e-12)
    if data.problem_type == "multi_label_classification":
        return numpy.log(clipped / (1 - clipped))
    out = numpy.full((len(clipped), len(data.label_names)), numpy.log(1e-12))
    out[:, numpy.unique(labels)] = numpy.log(clipped)
    return out
