"""Scanning data sets for triggers and pictures for adversarial examples."""
