"""A Hipoink label server of our own: its API, its faults, and a wall that shows its labels."""
