"""Makes one adversarial or poisoned image from one clean image. Knows tensors, not files."""
