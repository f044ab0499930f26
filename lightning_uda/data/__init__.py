"""Datasets, label spaces, streams and the data module that pairs them."""
