"""From result files of a scale to its tables, its figures and the numbers that pages cite."""
