"""Hermes side by side with OpenSSH, Cowrie and a plain asyncssh server: one client, one run, ratios. `scripts/bench` runs it."""
