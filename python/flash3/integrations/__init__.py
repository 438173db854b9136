"""flash3 inside other libraries. Each module is imported by who wants it."""
