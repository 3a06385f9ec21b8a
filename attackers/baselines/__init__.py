"""Attacks of others, as controls and for comparison."""
