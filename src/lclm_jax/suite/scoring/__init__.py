"""Scores of answers: the published scorers, a judge model, the likelihood of the gold answer."""
