"""Views over records and published numbers: numbers, then text and drawings, then pages; `views` calls them."""
