"""Runs a command in a process with less: python limited.py cores|memory|file BYTES COMMAND... Nothing is forked."""

import os
import resource
import sys

what, amount, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
if what == "cores":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:amount])
else:
    resource.setrlimit({"memory": resource.RLIMIT_AS, "file": resource.RLIMIT_FSIZE}[what], (amount, amount))
os.execv(command[0], command)
