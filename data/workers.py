"""Worker processes that never outlive the process that started them."""

import multiprocessing
import multiprocessing.connection
import os
import threading


def exit_with_parent() -> None:
    """Makes this worker process exit when its parent is gone, even if that was killed.

    A worker that waits on a queue holds both of its ends, so it would never learn of it otherwise.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="exit_with_parent", daemon=True).start()
