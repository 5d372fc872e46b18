"""Importances of nodes and edges, by three engines."""
