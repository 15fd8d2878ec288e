"""Stand-ins for the world outside, served over real HTTP on loopback: for `up`, `demo` and the tests."""
