"""Publishing to the Hugging Face Hub: checks, metadata and upload."""
