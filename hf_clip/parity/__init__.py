"""The proof that a converted folder is its original."""
