"""A toy world of street signs: scenes, a tokenizer, a trained LLaVA-style model and a TextVQA-format evaluation set."""
