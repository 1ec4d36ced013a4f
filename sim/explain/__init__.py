"""What a run is made of, what bounds it, and what would change it, found by simulating the changes."""
