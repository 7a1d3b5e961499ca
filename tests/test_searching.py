"""How far the solver's searches go: on until something is found, and to the end before nothing is believed."""

import numpy as np
import pytest

from convexbn import whiten
from convexbn.patches import NO_POOLING
from convexbn.pricing import climb, directions_between, random_directions, search_in_stages, thorough_search
from convexbn.pricing.families import FOLLOWING, NEAR
from convexbn.pricing.local import CLOSE, WIDE
from convexbn.pricing.thorough import DEARER
from convexbn.solvers.searching import MOST, THOROUGH, Reach, Search


def case() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return whiten(generator.standard_normal((80, 3))).basis, generator.standard_normal((80, 1))


def counted(search: Search) -> list[int]:
    """The numbers of starts of its local searches, from now on, where they aren't the second stage of a search."""
    sizes, local = [], search.local

    def look(v, starts, widths):
        if widths != CLOSE:
            sizes.append(len(starts))
        return local(v, starts, widths)

    search.local = look
    return sizes


def test_a_search_ends_at_the_first_find_or_goes_through_all_starts():
    basis, v = case()
    search = Search(basis, NO_POOLING, 1.0, 8, 0, "cpu")
    counts, begin, neurons = [], search.begin, random_directions(2, 4, (1,))
    search.begin = lambda neurons, count, seed: counts.append(count) or begin(neurons, count, seed)
    found = [search(v, neurons, neurons, enough, draw=1, reach=Reach.FULL, look_at_clock=lambda: None) for enough in (0.0, np.inf)]
    assert counts[0] == 8
    assert sum(counts[1:]) == MOST * 8
    assert found[1].worths.max() >= found[0].worths.max()
    for directions, worths in found:
        assert worths == pytest.approx(np.linalg.norm(v.T @ np.maximum(basis @ directions.T, 0.0), axis=0), rel=1e-12)


def test_a_search_that_climbs_does_so_too_and_keeps_what_it_is_shown():
    basis, v = case()
    search, neurons, known = Search(basis, NO_POOLING, 1e-9, 8, 0, "cpu"), random_directions(2, 4, (1,)), random_directions(3, 4, (2,))
    sizes, looks = counted(search), []
    found = [
        search(v, neurons, known, enough, draw=1, reach=Reach.SHARP, look_at_clock=lambda: looks.append(len(sizes)))
        for enough in (0.0, np.inf)
    ]
    assert sizes[:2] == [4, 12]  # random starts on rounded kinks, and with those around neurons on sharp ones
    assert sum(sizes[2:]) == 2 * MOST * 8
    assert looks == [0, 2, 4, 6]
    for directions, worths in found:
        assert worths == pytest.approx(np.linalg.norm(v.T @ np.maximum(basis @ directions.T, 0.0), axis=0), rel=1e-12)
        assert np.allclose(directions[-5:], climb(basis, v, np.concatenate([neurons, known])))
        assert search.worths(v, climb(basis, v, directions[:-5])) == pytest.approx(worths[:-5], rel=1e-9)  # maxima, all of them


def test_a_thorough_search_starts_as_often_as_all_before_it():
    basis, v = case()
    search = Search(basis, NO_POOLING, 1.0, 8, 0, "cpu")
    sizes = counted(search)
    for draw, starts in ((1, THOROUGH), (1000, 8000)):
        sizes.clear()
        found = search.thorough(v, random_directions(2, 4, (1,)), draw)
        assert sum(sizes) == 2 * starts
        assert search.worths(v, climb(basis, v, found)) == pytest.approx(search.worths(v, found), rel=1e-9)


def test_a_thorough_search_for_families_starts_at_least_as_often_as_there_are_neurons():
    basis, v = several()
    search = Search(basis, NO_POOLING, 1.0, 8, 0, "cpu")
    sizes = counted(search)
    for neurons, count in ((2, 8), (40, 40)):
        sizes.clear()
        thorough_search(search.local, basis, v, random_directions(neurons, 21, (1,)), DEARER * 8, (0,))
        assert sizes[0] == count // 2 + NEAR * count


def test_rounded_kinks_find_higher_maxima_than_sharp_ones():
    """Of 100 random starts with 31 columns, more than 70 end higher."""
    generator = np.random.default_rng(2)
    basis, v = whiten(generator.standard_normal((600, 30))).basis, generator.standard_normal((600, 1))
    search, starts = Search(basis, NO_POOLING, 1.0, 8, 0, "cpu"), random_directions(100, 31, (0,))
    rounded, sharp = (search.worths(v, search.local(v, starts, widths)) for widths in ((1.0, 0.3, 0.1, 0.03, 0.0), 5 * (0.0,)))
    assert np.mean(rounded > sharp) > 0.7


def test_worths_are_the_same_in_parts(monkeypatch):
    basis, v = case()
    search, directions = Search(basis, NO_POOLING, 1.0, 8, 0, "cpu"), random_directions(50, 4, (0,))
    whole = search.worths(v, directions)
    monkeypatch.setattr("convexbn.pricing.local.NUMBERS", 500)
    assert search.worths(v, directions) == pytest.approx(whole, rel=1e-12)


def test_starts_between_are_half_way_from_a_neuron_to_a_sample():
    """Turned back about a neuron, each is a row of the basis, but for its length and sign; without neurons it is one already."""
    basis, _ = case()
    neurons, rows = random_directions(3, 4, (1,)), basis / np.linalg.norm(basis, axis=1, keepdims=True)
    between = directions_between(neurons, basis, 40, (2,))
    mirrored = 2.0 * (between @ neurons.T)[:, :, None] * between[:, None, :] - neurons
    assert np.abs(mirrored @ rows.T).max(axis=(1, 2)) == pytest.approx(1.0)
    alone = directions_between(neurons[:0], basis, 40, (2,))
    assert np.abs(alone @ rows.T).max(axis=1) == pytest.approx(1.0)


def test_a_search_in_stages_ends_where_the_best_half_ends():
    basis, v = case()
    search, starts = Search(basis, NO_POOLING, 1.0, 8, 0, "cpu"), random_directions(41, 4, (0,))
    kept = search_in_stages(search.local, basis, v, starts)
    every = search.local(v, search.local(v, starts, WIDE), CLOSE)
    assert kept.shape == (21, 4)
    assert np.max(search.worths(v, kept)) == pytest.approx(np.max(search.worths(v, every)), rel=1e-6)


def several() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    return whiten(generator.standard_normal((300, 20))).basis, generator.standard_normal((300, 3))


def test_families_hold_higher_maxima_than_their_first_members():
    basis, v = several()
    search = Search(basis, NO_POOLING, 1.0, 60, 0, "cpu")
    sizes = counted(search)
    found = search(v, np.zeros((0, 21)), np.zeros((0, 21)), np.inf, draw=1, reach=Reach.FULL, look_at_clock=lambda: None)
    assert sizes[:2] == [30, 30]
    assert len(sizes) == 2 + FOLLOWING + 1
    assert all(0 < size <= 30 for size in sizes[2:-1])  # the children of fifteen
    assert np.max(found.worths) > np.max(found.worths[:45])
    exact = np.linalg.norm(v.T @ np.maximum(basis @ found.directions.T, 0.0), axis=0)
    assert found.worths == pytest.approx(exact, rel=1e-12)


def test_families_end_where_all_of_the_best_are_worth_enough():
    basis, v = several()
    search, neurons = Search(basis, NO_POOLING, 1.0, 60, 0, "cpu"), random_directions(2, 21, (1,))
    sizes = counted(search)
    found = search(v, neurons, neurons, 0.0, draw=1, reach=Reach.FULL, look_at_clock=lambda: None)
    assert sizes == [30 + NEAR * 60, 30, 2]
    assert found.worths.shape == (2 + 30 + NEAR * 60 + 15,)
    nothing = search(0.0 * v, neurons, neurons, 0.0, draw=1, reach=Reach.FULL, look_at_clock=lambda: None)
    assert np.all(nothing.worths == 0.0)
