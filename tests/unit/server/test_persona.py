"""The lists we show are Debian 12's, in its order."""

from hermes.server import persona


def test_algorithms_keep_the_personas_order() -> None:
    algorithms = persona.algorithms()
    for ours, debian in (
        (algorithms.kex, persona.KEX_ALGORITHMS),
        (algorithms.encryption, persona.ENCRYPTION_ALGORITHMS),
        (algorithms.mac, persona.MAC_ALGORITHMS),
        (algorithms.compression, persona.COMPRESSION_ALGORITHMS),
    ):
        assert list(ours) == [name for name in debian if name in ours]
    assert algorithms.encryption == persona.ENCRYPTION_ALGORITHMS
    assert {"curve25519-sha256", "diffie-hellman-group14-sha256"} <= set(algorithms.kex)


def test_environment_as_debian_accepts_it() -> None:
    assert persona.accepts_env(b"LANG")
    assert persona.accepts_env(b"LC_ALL")
    for name in (b"LD_PRELOAD", b"PATH", b"LANGUAGE", b"LC", b"LC_ALL\n", b"XLANG", b""):
        assert not persona.accepts_env(name)
