"""HTTP in: the routes, each a thin layer over the rooms behind it."""
