"""What the commands of ``maxmin`` do: a file each, with ``run(args)``."""
