"""Numbers, tables, pictures and pages as people read them."""
