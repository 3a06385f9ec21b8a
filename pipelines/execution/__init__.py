"""How work runs: engines, workers, devices, memory and progress."""
