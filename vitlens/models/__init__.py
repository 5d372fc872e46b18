"""Vision Transformers behind one adapter, with LibraGrad."""
