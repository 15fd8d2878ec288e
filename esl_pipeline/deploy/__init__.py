"""How it is installed: the list of processes, and what is made from it."""
