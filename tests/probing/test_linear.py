import numpy as np
import torch

from aligncap.probing.linear import fit_logistic, uar


def test_a_separable_set_is_learnt():
    torch.manual_seed(0)
    labels = torch.arange(90) % 3
    features = torch.nn.functional.one_hot(labels, 3).float() * 4 + torch.randn(90, 3)
    weight = fit_logistic(features, labels, 3, 1e-3)
    predicted = (features @ weight[:-1] + weight[-1]).argmax(1)
    assert (predicted == labels).float().mean() > 0.9


def test_the_penalty_shrinks_the_weights():
    torch.manual_seed(0)
    features, labels = torch.randn(60, 5), torch.arange(60) % 2
    sizes = [fit_logistic(features, labels, 2, penalty)[:-1].norm() for penalty in (1e-3, 1e-1, 10.0)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_uar_weighs_labels_alike():
    labels = np.array([0] * 9 + [1])
    assert uar(np.zeros(10, int), labels) == 0.5
