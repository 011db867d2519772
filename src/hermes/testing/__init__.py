"""For tests of Hermes and of what is built on it: a pytest plugin with mocks, and fakes that keep the real contracts.

The plugin (`hermes.testing.plugin`) loads by itself wherever Hermes is installed. Fakes: `hermes.testing.engines`
(`FakeEngine`, `SlowEngine`, `NeverEngine`, `BrokenEngine`) and `hermes.testing.pool` (`FakePool`).
"""
