"""How a process gives up power for good: capabilities, files, sockets, system calls. Who imports this can lose, never gain."""
