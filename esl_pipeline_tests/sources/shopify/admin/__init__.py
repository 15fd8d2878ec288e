"""Tests of the Admin API's readers, against scripted servers on loopback."""
