"""What a model has to beat: answers that cost seconds, on the same rows."""

import numpy
import pandas
from numpy.typing import ArrayLike
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from finetune.corpus import Corpus

LINEAR = "TF-IDF + logistic regression"
RIDGE = "TF-IDF + ridge regression"
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
    labels = numpy.array(data.train["label"].tolist())
    rarest = 2 if len(train) >= ENOUGH_TEXTS else 1
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=rarest)
    if data.problem_type == "regression":
        models = {"mean of train": DummyRegressor(), RIDGE: make_pipeline(words, Ridge())}
        return {n: m.fit(train, labels).predict(test)[:, None] for n, m in models.items()}
    linear, majority = LogisticRegression(C=10, max_iter=1000), DummyClassifier(strategy="prior")
    if data.problem_type == "multi_label_classification":
        linear, majority = OneVsRestClassifier(linear), OneVsRestClassifier(majority)
    linear.fit(words.fit_transform(train), labels)
    nothing = [numpy.zeros((len(rows), 1)) for rows in (train, test)]
    majority.fit(nothing[0], labels)
    return {
        MAJORITY: _logits(
            numpy.asarray(majority.fit(nothing[0], labels).predict_proba(nothing[1])), data
        ),
        LINEAR: _logits(linear.predict_proba(words.transform(test)), data),
    }


def _logits(probabilities: ArrayLike, data: Corpus) -> numpy.ndarray:
    """(N, K) logits of probabilities, with classes that train never showed at almost nothing."""
    clipped = numpy.clip(numpy.asarray(probabilities), 1e-12, 1 - 1e-12)
    if data.problem_type == "multi_label_classification":
        return numpy.log(clipped / (1 - clipped))
    out = numpy.full((len(clipped), len(data.label_names)), numpy.log(1e-12))
    out[:, numpy.unique(data.train["label"])] = numpy.log(clipped)
    return out
