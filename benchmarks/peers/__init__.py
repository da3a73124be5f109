"""Other ways to fit the same mixture. Each runs in a process and, where it needs packages, an environment of its own."""
