"""Compare converted folders with their originals, bit by bit."""
