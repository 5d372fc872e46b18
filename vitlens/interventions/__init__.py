"""Changing features and seeing what follows: what a change is, and the model run with it."""
