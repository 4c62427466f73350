"""What a model has to beat: answers that cost seconds, on the same rows."""

from typing import Any

import numpy
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from finetune.corpus import Corpus
from finetune.scoring import HEADLINE, Metric, score

LINEAR = "TF-IDF + logistic regression"
RIDGE = "TF-IDF + ridge regression"
MAJORITY = "majority class"
ENOUGH_TEXTS = 1000


def for_texts(data: Corpus) -> dict[str, dict[str, Metric]]:
    """Score the trivial answers for texts on the test split, trained on the train split.

    Word 1- and 2-grams with sublinear term frequency, without those of a single text where there
    are texts enough, and little regularisation: the best of a few settings on IMDB's validation
    rows, so that it is no straw man.

    Returns:
        name -> {headline metric: {value, low, high, n}}
    """

    def texts(frame: Any) -> list[str]:
        pairs = frame["text_pair"] if "text_pair" in frame else [""] * len(frame)
        return [f"{a}\n{b}" for a, b in zip(frame["text"], pairs, strict=True)]

    train, test = texts(data.train), texts(data.test)
    labels = numpy.array(data.train["label"].tolist())
    truth = numpy.array(data.test["label"].tolist())
    headline = HEADLINE[data.problem_type]

    def metric(logits: numpy.ndarray) -> dict[str, Metric]:
        scores = score(data.problem_type, logits, truth, data.label_names)
        return {headline: scores["metrics"][headline]}

    rarest = 2 if len(train) >= ENOUGH_TEXTS else 1
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=rarest)
    if data.problem_type == "regression":
        models = {
            "mean of train": DummyRegressor(),
            RIDGE: make_pipeline(words, Ridge()),
        }
        return {
            name: metric(model.fit(train, labels).predict(test)[:, None])
            for name, model in models.items()
        }
    linear, majority = LogisticRegression(C=10, max_iter=1000), DummyClassifier(strategy="prior")
    if data.problem_type == "multi_label_classification":
        linear, majority = OneVsRestClassifier(linear), OneVsRestClassifier(majority)
    out = {}
    for name, model in {MAJORITY: majority, LINEAR: make_pipeline(words, linear)}.items():
        if name == MAJORITY:
            said = model.fit(numpy.zeros((len(labels), 1)), labels).predict_proba(
                numpy.zeros((len(truth), 1))
            )
        else:
            said = model.fit(train, labels).predict_proba(test)
        out[name] = metric(_logits(said, data))
    return out


def _logits(probabilities: numpy.ndarray, data: Corpus) -> numpy.ndarray:
    """(N, K) logits of probabilities, with classes that train never showed at almost nothing."""
    clipped = numpy.clip(probabilities, 1e-12, 1 - 1e-12)
    if data.problem_type == "multi_label_classification":
        return numpy.log(clipped / (1 - clipped))
    out = numpy.full((len(clipped), len(data.label_names)), numpy.log(1e-12))
    out[:, numpy.unique(data.train["label"])] = numpy.log(clipped)
    return out
