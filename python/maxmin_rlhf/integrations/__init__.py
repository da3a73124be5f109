"""Faces for other programs' trainers; each module imports its program when it is asked for."""
