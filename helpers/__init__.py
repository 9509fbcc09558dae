"""What the notebooks share: the data, the models, the training, the results."""
