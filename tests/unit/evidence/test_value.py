from hypothesis import given
from hypothesis import strategies as st

from hermes.evidence.value import BULK_BYTES, Candidate, Value, first_to_go, value
from hermes.store.pruning import SessionRow

DAY = 86400.0


def session(commands: int = 0, bytes_in: int = 0, bytes_out: int = 0, *, unknown: bool = False) -> SessionRow:
    return SessionRow(1, "s", 0, commands, bytes_in, bytes_out, unknown)


def test_what_a_session_is_worth() -> None:
    assert value(session()) is Value.IDLE
    assert value(session(bytes_out=500)) is Value.IDLE, "a prompt is nothing that somebody did"
    assert value(session(commands=1)) is Value.ACTED
    assert value(session(bytes_in=1)) is Value.ACTED, "sftp: files, and no command"
    assert value(session(commands=1, bytes_out=BULK_BYTES)) is Value.BULK
    assert value(session(bytes_in=BULK_BYTES)) is Value.BULK


def test_what_is_not_known_may_be_worth_all() -> None:
    assert value(None) is Value.ACTED
    assert value(session(unknown=True)) is Value.ACTED


def test_within_weeks_the_least_valuable_goes_first_whatever_its_age() -> None:
    new_knock, old_idle, old_bulk, old_acted = (
        Candidate(kind, days * DAY) for kind, days in ((Value.KNOCK, 0), (Value.IDLE, 6), (Value.BULK, 18), (Value.ACTED, 45))
    )
    left = [old_acted, old_bulk, old_idle, new_knock]
    order = []
    while left:
        first = first_to_go(left)
        assert first is not None
        order.append(first)
        left.remove(first)
    assert order == [new_knock, old_idle, old_bulk, old_acted]


def test_in_the_end_the_old_goes_before_what_is_new_and_idle() -> None:
    assert first_to_go([Candidate(Value.ACTED, 60 * DAY), Candidate(Value.IDLE, 0)]) == Candidate(Value.ACTED, 60 * DAY)


@given(st.sampled_from(list(Value)), st.lists(st.floats(0, 1e9), min_size=1))
def test_of_one_value_the_oldest_goes_first(worth: Value, ages: list[float]) -> None:
    first = first_to_go(Candidate(worth, age) for age in ages)
    assert first is not None
    assert first.age == max(ages)


def test_nothing_goes_where_nothing_is() -> None:
    assert first_to_go([]) is None
