"""Why tokens chosen by the vision tower answer better than tokens chosen by the text."""
