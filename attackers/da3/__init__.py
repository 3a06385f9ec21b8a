"""DA3Attacker: 14 aesthetic filters steered by an Attack Diffusion Transformer."""
