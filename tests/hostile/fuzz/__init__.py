"""A fuzzer for the whole of what an SSH client can send: cases are generated from seeds by a grammar, mutated, and kept as text.

`python -m tests.hostile.fuzz` runs it for as long as you like; docs/how-to/fuzzing.md tells how.
"""
