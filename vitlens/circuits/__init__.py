"""Circuits of one image: choosing nodes, holding the result, measuring how faithful it is."""
