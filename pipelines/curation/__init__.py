"""Which adversarial examples are worth annotating."""
