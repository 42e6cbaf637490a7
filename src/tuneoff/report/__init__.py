"""What a person looks at: tables, charts, the page."""
