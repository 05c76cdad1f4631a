"""How it is run: the command, the local stack and the sandbox exchange."""
