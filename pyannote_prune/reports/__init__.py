"""Presentation of results: tables, figures, cards, pages."""
