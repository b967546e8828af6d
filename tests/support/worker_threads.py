"""A library that starts a thread when it is imported, for tests of what must not be forked."""

import threading

threading.Thread(target=threading.Event().wait, daemon=True).start()
