"""A library that kills the process which imports it."""

import os
import signal

os.kill(os.getpid(), signal.SIGSEGV)
