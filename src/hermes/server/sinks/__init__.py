"""What answers in place of the servers that forwards should lead to: bytes in, bytes out, no I/O.

Whatever is fed in, nothing here raises, and nothing here keeps more than a few bounded buffers.
"""
