import numpy as np
import torch

from aligncap.evaluation.probe import about_speakers, fit_logistic, uar


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


def test_features_about_speakers_lose_what_a_speaker_always_has():
    torch.manual_seed(0)
    own, voice = torch.randn(8, 2, 3), torch.randn(2, 2, 3) * 10
    speakers = ["a", "b"] * 4
    features = own + torch.stack([voice[i % 2] for i in range(8)])
    plain = own - torch.stack([own[i % 2 :: 2].mean(0) for i in range(8)])
    assert torch.allclose(about_speakers(features, speakers), plain, atol=1e-5)
    assert torch.allclose(about_speakers(features, [None] * 8), features - features.mean(0))
