"""Corpora and row indices of any size that are not there."""
