"""Where products come from. Each source turns what it receives into the same plain facts."""
