"""What is in a corpus: its size, copies, languages, strings that should not be there, evaluation data."""
