"""How the front sees containers: a pool to ask, a container to start processes in, and nothing of how it is made."""
