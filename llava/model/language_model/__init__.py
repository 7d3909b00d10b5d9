"""LLaVA on LLaMA, Mistral and Qwen2."""
