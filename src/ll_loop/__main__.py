"""`ll-loop` and `python -m ll_loop`."""

from __future__ import annotations

import gc
import os
import signal
import sys


def main() -> None:
    """Run the command line and end the process with its exit code."""
    gc.set_threshold(20_000)  # loading modules makes no garbage, and looking for it takes a twentieth of the start
    _occupy_standard_streams()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where a parent has it ignored, exit codes would be lost
    try:
        from .cli import border  # here, so that a Ctrl-C in these first milliseconds is no traceback either

        code = border.main(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    if _is_watched():
        sys.exit(code)
    os._exit(code)  # all is written, and to take the modules apart takes a fifth of the time of a short run


def _is_watched() -> bool:
    """Whether a profiler, a debugger or the like is at work, which has something to say in the end."""
    if sys.version_info >= (3, 12) and any(map(sys.monitoring.get_tool, range(6))):
        return True
    return bool(sys.getprofile() or sys.gettrace())


def _occupy_standard_streams() -> None:
    """Open what the caller has closed (`>&-`), lest a journal get number 1 and the display be written into it."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


if __name__ == "__main__":
    main()
