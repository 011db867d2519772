"""The watcher: a process outside of one box that the kernel asks before a program is executed there or an address is used.

It answers each time "go on", after it has written down what is about to happen. Forked by the zygote, single-threaded, without
asyncio; whatever it reads of the box is hostile. It has root's eyes, and no hand in the box.
"""
