"""Why an image can be described with so few tokens: the paper's analyses, on any model and any pictures."""
