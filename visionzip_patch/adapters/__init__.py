"""Model families that are not LLaVA's own classes: one module each, imported when such a model is met."""
