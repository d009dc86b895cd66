"""Mutation testing of the checker: reverse rules with one equation changed, each of which it has to call WRONG."""
