"""read → validate → push: the three stages as plain functions over frames, and the loop that drains events.

Dagster calls them in two shapes (three asset steps, or one drain run); nothing here knows Dagster.
"""
