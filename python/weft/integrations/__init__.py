"""Other people's models: which of their modules weft knows, and how it takes their place."""
