"""Labelling campaigns: tasks, Label Studio, votes and opinion scores."""
