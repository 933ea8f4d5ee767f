"""The three demos: each walks its system's whole road in minutes."""
