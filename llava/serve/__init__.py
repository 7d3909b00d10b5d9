"""Talk with a model: conversations that keep what they have computed."""
