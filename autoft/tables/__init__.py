"""Samples from tables: which files, how they are read, which column is what, and samples that are made when needed."""
