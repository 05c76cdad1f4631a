"""What is learned: features, labels, splits, estimators, evaluation and the model artifact."""
