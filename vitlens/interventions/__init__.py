"""Interventions: changes of features, and model runs with these changes."""
