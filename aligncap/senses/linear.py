"""Linear heads: multinomial logistic regression of numbers to the seven emotions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from aligncap.senses.moments import SEVEN


def fit_linear(x: np.ndarray, labels: Sequence[str], penalty: float, balanced: bool) -> dict[str, Tensor]:
    """State of an `nn.Linear(width, 7)`, fitted to numbers (n, width), which are standardised for it.

    The loss is cross-entropy, labels weighted alike if `balanced`, + penalty · |weights|². An emotion without
    examples is never named.
    """
    mean, std = x.mean(0), np.maximum(x.std(0), 1e-5)
    truth = np.array([SEVEN.index(label) for label in labels])
    weights = "balanced" if balanced else None
    fitted = LogisticRegression(C=1 / (2 * len(truth) * penalty), class_weight=weights, max_iter=1000)
    fitted.fit((x - mean) / std, truth)
    coefficients, intercept = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # scikit-learn keeps the second against the first
        coefficients, intercept = np.vstack([0 * coefficients, coefficients]), np.array([0.0, *intercept])
    weight, bias = np.zeros((len(SEVEN), x.shape[1])), np.full(len(SEVEN), -1e4)
    weight[fitted.classes_] = coefficients / std
    bias[fitted.classes_] = intercept - weight[fitted.classes_] @ mean
    return {"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()}
