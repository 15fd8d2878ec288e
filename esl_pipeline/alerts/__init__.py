"""What people are told of: which troubles are alerts, when one begins and ends, and how the word gets out."""
