from hermes.broker.facts import MAX_TEXT, fact
from hermes.container.messages import MAX_MESSAGE, BrokerEvent, encode
from hermes.events import ContainerLost, EngineFailed


def test_a_fact_carries_what_the_event_says() -> None:
    event = ContainerLost(container_id="box-1", session_id="one")
    assert fact(event) == BrokerEvent(kind="container.lost", fields={"container_id": "box-1", "session_id": "one"})


def test_a_fact_fits_a_packet_whatever_an_engine_says() -> None:
    event = fact(EngineFailed(engine="docker", operation="create", reason="x" * MAX_MESSAGE))
    assert len(str(event.fields["reason"])) == MAX_TEXT
    assert event.kind == "engine.failed"
    assert set(event.fields) == {"engine", "operation", "reason"}
    assert len(encode(event)) < MAX_MESSAGE
