"""Exercises with a blank backward, and their grading. Imports train and below."""
