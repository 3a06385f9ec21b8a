"""Models under attack: differentiable scorers that own their range and preprocessing."""
