import pytest
from bench.stats import growth, number, percentile
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(0, 1.0), (50, 3.0), (95, 4.8), (100, 5.0)],
)
def test_percentile_interpolates_between_neighbours(percent: float, expected: float) -> None:
    assert percentile([5, 1, 4, 2, 3], percent) == pytest.approx(expected)


def test_percentile_of_one_sample_is_that_sample() -> None:
    assert percentile([7.5], 99) == 7.5


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_percentile_stays_within_the_samples_and_rises(samples: list[float], percent: float) -> None:
    value = percentile(samples, percent)
    assert min(samples) <= value <= max(samples)
    assert percentile(samples, 0) <= value <= percentile(samples, 100)


@pytest.mark.parametrize(("samples", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentile_refuses_what_has_no_answer(samples: list[float], percent: float) -> None:
    with pytest.raises(ValueError):
        percentile(samples, percent)


def test_growth_leaves_out_the_warming_up() -> None:
    assert growth([1, 1, 10, 10, 10, 10, 20, 20]) == 2.0


def test_growth_of_a_flat_series_is_one_even_with_a_spike() -> None:
    assert growth([5, 5, 5, 5, 5, 5, 99, 5, 5, 5, 5, 5]) == 1.0


@pytest.mark.parametrize("samples", [[1.0] * 7, [0.0] * 12])
def test_growth_refuses_what_has_no_trend(samples: list[float]) -> None:
    with pytest.raises(ValueError):
        growth(samples)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.6123, "0.612"),
        (9.7, "9.7"),
        (71.04, "71"),
        (1310.4, "1310"),
        (200, "200"),
        (1 / 12, "0.0833"),
        (-4.25, "-4.25"),
    ],
)
def test_number_keeps_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert number(value) == text
