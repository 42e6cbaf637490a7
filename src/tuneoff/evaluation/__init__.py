"""Scores of a model on a split, and the estimates made of them."""
