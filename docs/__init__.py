"""Pages that are made from the code: see `checks_page`."""
