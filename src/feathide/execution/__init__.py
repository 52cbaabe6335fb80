"""Tasks, the engines that run them, and the store of their results."""
