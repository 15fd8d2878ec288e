"""Measurements of speed and memory, each a module to run; none is part of the package."""
