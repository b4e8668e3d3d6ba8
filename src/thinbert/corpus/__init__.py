"""People's documents: reading them with exact offsets, and answers that cite them."""
