"""Images, captions and labels from folders, tables and tars."""
