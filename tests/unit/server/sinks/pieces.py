"""How a talk is fed in a test: whole, or in pieces, which must make no difference."""

from hermes.server.sinks.turns import Talk, Turn


def say(server: Talk, *lines: bytes) -> list[bytes]:
    """Say lines; return those that are answered."""
    return bytes(server.feed(b"".join(it + b"\r\n" for it in lines)).answer).splitlines()


def feed(server: Talk, text: bytes, cuts: list[int]) -> Turn:
    """Feed text in pieces of these lengths, again and again; return all that came of it."""
    whole, at, number = Turn(), 0, 0
    while at < len(text) and not whole.over and whole.rest is None:
        size = cuts[number % len(cuts)]
        turn = server.feed(text[at : at + size])
        at, number = at + size, number + 1
        whole.answer += turn.answer
        whole.facts += turn.facts
        whole.over, whole.rest = turn.over, turn.rest if turn.rest is None else turn.rest + text[at:]
    return whole
