"""Grading: files of strangers, each run in a process of its own, judged outside it.

    contain     runs a program with a limit on time, memory and processes, and ends all that it started
    submission  that program: it imports a file and writes down the numbers its backward gives at points it is handed
    guard       what the file may not do while it is there
    reference   the judge: the exercise's own forward, the points, the oracles' evidence; it runs no code of the file
    grade       one file after the other, several at a time

What this protects and what not: docs/exercises.md.
"""
