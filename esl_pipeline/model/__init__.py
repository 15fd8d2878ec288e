"""Plain types that every room knows: what a shop is called, what rows look like."""
