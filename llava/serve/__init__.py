"""Talk with a model: in a terminal, and on a web page that compares all tokens with few."""
