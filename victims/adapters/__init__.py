"""What users bring, as what this project works with: models as victims, images as tensors."""
