"""What makes victims safer: detectors, fine-tuning, scanners."""
