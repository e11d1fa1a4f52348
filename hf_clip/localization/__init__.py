"""Where in an image a text is: maps, boxes from maps, and attention."""
