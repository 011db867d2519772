"""The attacks, by what they are made on. Importing this package declares every probe, in the order in which they run."""

from hermes.broker.verify.probes import namespaces, mounts, kernel, privilege, surroundings, network, resources, files, ending  # isort: skip

__all__ = ["ending", "files", "kernel", "mounts", "namespaces", "network", "privilege", "resources", "surroundings"]
