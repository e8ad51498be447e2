"""Fine-tuning of pretrained encoders on text."""
