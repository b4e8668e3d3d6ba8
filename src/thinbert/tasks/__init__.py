"""What a model is used for: question answering, its data sets and its scores."""
