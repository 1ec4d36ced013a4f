"""Whole servers: published measurements of real engines under load, replayed and held against the simulation."""
