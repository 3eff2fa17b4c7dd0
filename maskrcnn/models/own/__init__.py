"""Networks of the user's own: the code, its description, and the checks of what it returns."""
