import pytest

from hermes.broker.plan import Plan, plan

IDLE = dict.fromkeys(("creating", "waiting", "stopping", "destroying"), 0) | {
    "size": 3, "concurrency": 2, "max_stopping": 20, "warm": 3, "failing": False, "paused": False, "courteous": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (0, 0)),
        ({"warm": 2}, (1, 0)),
        ({"warm": 0}, (2, 0)),
        ({"warm": 0, "creating": 2}, (0, 0)),
        ({"warm": 2, "creating": 1}, (0, 0)),
        ({"warm": 0, "creating": 1, "waiting": 50}, (1, 0)),
        ({"warm": 0, "paused": True}, (0, 0)),
        ({"warm": 0, "failing": True}, (1, 0)),
        ({"warm": 0, "failing": True, "creating": 1}, (0, 0)),
        ({"stopping": 9}, (0, 2)),
        ({"stopping": 9, "destroying": 2}, (0, 0)),
        ({"stopping": 5, "warm": 0}, (2, 1)),
        ({"stopping": 5, "warm": 0, "destroying": 1}, (2, 0)),
        ({"stopping": 6, "warm": 0}, (2, 2)),
        ({"stopping": 20, "warm": 0}, (2, 2)),
        ({"stopping": 21, "warm": 0}, (0, 2)),
        ({"warm": 9}, (0, 0)),
        ({"size": 0, "warm": 0, "stopping": 1}, (0, 1)),
        ({"courteous": True, "warm": 2, "stopping": 5}, (0, 0)),
        ({"courteous": True, "warm": 2, "stopping": 6}, (1, 2)),
        ({"courteous": True, "warm": 1}, (2, 0)),
        ({"courteous": True, "warm": 2, "waiting": 1}, (2, 0)),
    ],
)
def test_plan(changes: dict[str, int | bool], expected: tuple[int, int]) -> None:
    assert plan(**{**IDLE, **changes}) == Plan(*expected)  # type: ignore[arg-type]
