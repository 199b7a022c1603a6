"""What people look at, made of results: tables, figures, cards, pages."""
