"""The attacks, by what they are made on. Importing this package declares every probe, in the order in which they run."""

from hermes.broker.verify.probes import namespaces, mounts, kernel, privilege, surroundings, network, ending  # isort: skip

__all__ = ["ending", "kernel", "mounts", "namespaces", "network", "privilege", "surroundings"]
