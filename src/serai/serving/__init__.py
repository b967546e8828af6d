"""Running a task on a service: who answers, on which engine, what happens when that fails, and switching it."""
