"""Where in an image a text is: maps, boxes and attention."""
