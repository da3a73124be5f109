"""What the commands of ``maxmin`` do: a file each, with ``run(args)``; what they understand is in `_parser`."""
