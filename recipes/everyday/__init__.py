"""How the bundled model `everyday` is made: ``python -m recipes.everyday``."""
