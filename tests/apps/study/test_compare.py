import numpy as np
import pytest

from sa_mmdet.apps.study.compare import paired_difference


def test_textbook_example():
    """Student's interval of 1, 2, 3, 4, 5: 3 ± 2.776 · √2.5 / √5."""
    found = paired_difference(dict(enumerate([11., 22., 33., 44., 55.])),
                              dict(enumerate([10., 20., 30., 40., 50.])))
    assert (found.mean, len(found.by_seed)) == (3, 5)
    assert found.margin == pytest.approx(2.776 * np.sqrt(2.5) / np.sqrt(5), rel=1e-3)
    assert found.excludes_zero


def test_pairs_are_of_the_same_seed():
    """What both share from seed to seed is no noise of their difference."""
    found = paired_difference({0: 11., 1: 31., 2: 21.5}, {2: 20., 1: 30., 0: 10., 7: 99.})
    assert found.by_seed == {0: 1, 1: 1, 2: 1.5}
    assert found.margin < 1
    assert found.excludes_zero


@pytest.mark.parametrize(('values', 'baseline'), [({}, {0: 1.}), ({0: 1.}, {1: 1.})])
def test_nothing_in_common(values, baseline):
    assert paired_difference(values, baseline) is None


def test_one_seed_has_no_interval():
    found = paired_difference({0: 2.}, {0: 1.})
    assert (found.mean, found.margin, found.excludes_zero) == (1, None, False)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        baseline = rng.normal(0, 5, 4)
        values = baseline + rng.normal(1, 1, 4)
        found = paired_difference(dict(enumerate(values)), dict(enumerate(baseline)))
        held += abs(found.mean - 1) <= found.margin
    assert 0.93 < held / 2000 < 0.97
