"""What can be tried: saved models, labels for images, a page."""
