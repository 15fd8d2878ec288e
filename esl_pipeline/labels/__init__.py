"""The heart, without I/O: what may go on a label, and the label itself. Imports no other room."""
