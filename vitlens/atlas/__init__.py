"""The atlas: what every feature of every layer represents."""
