"""The head of a list, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from benchmarks.testtime.ranking import ndcg_at, top_k_regret


@pytest.mark.parametrize("k", [1, 3, 10, 50])
def test_ndcg_is_that_of_scikit_learn(k: int) -> None:
    rng = np.random.default_rng(0)
    target, score = rng.random((12, 20)), rng.random((12, 20))
    order = rng.permutation(240)  # lists need not stand together
    group = np.repeat(np.arange(12), 20)[order]
    found = ndcg_at(k, target.ravel()[order], score.ravel()[order], group)
    expected = [ndcg_score(target[i : i + 1], score[i : i + 1], k=k) for i in range(12)]
    assert found == pytest.approx(expected)


def test_regret_is_what_the_best_k_would_have_brought_besides() -> None:
    target = np.array([0.9, 0.1, 0.5, 0.2, 0.4])
    score = np.array([1.0, 5.0, 2.0, 0.0, 0.0])
    group = np.array([0, 0, 0, 1, 1])
    assert top_k_regret(1, target, score, group) == pytest.approx([0.8, 0.2])
    assert top_k_regret(2, target, score, group) == pytest.approx([0.9 + 0.5 - 0.6, 0.0])
    assert top_k_regret(2, target, target, group) == pytest.approx([0.0, 0.0])


def test_a_list_without_worth_has_no_ndcg_and_lists_differ_in_length() -> None:
    found = ndcg_at(2, np.array([0.0, 0.0, 1.0]), np.array([1.0, 2.0, 3.0]), np.array([0, 0, 1]))
    assert np.isnan(found[0]) and found[1] == 1.0
