"""From result rows to what people read: summaries, tables, text, JSON, the published numbers."""
