"""`hermes verify`: Hermes attacks a box of its own from inside, and does not listen if anything gets through."""
