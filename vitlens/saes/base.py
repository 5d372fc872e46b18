"""What every sparse autoencoder shares."""

from __future__ import annotations

from typing import TypeAlias

#: A feature, (layer, feature); feature -1 is the layer's error node.
FeatureId: TypeAlias = tuple[int, int]
