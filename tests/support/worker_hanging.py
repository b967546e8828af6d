"""A library whose import does not end; it says that it has begun by a file in the home of its process."""

import threading
from pathlib import Path

(Path.home() / "begun").touch()
threading.Event().wait()
