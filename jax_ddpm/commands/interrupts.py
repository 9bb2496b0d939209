"""Ctrl-C ends a command, whatever it is doing.

Imports only the standard library, so that the rule holds before the slow imports begin.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

GRACE_SECONDS = 3.0  # time to tidy up, from the first Ctrl-C to the forced end


@contextlib.contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Inside this context, Ctrl-C raises KeyboardInterrupt, and the process ends even if that has no effect.

    - While a module is imported, the process ends at once: half of an import cannot be undone.
    - Python drops exceptions in callbacks of the garbage collector (JAX has one) and in `__del__`. When it drops a
      KeyboardInterrupt, the process ends at once.
    - While C code runs, for example XLA's compiler, Python does not see the signal. A thread sees it, and ends the
      process GRACE_SECONDS after the first signal, or at the second.

    `SignalHandler` of a training run switches the thread off, because a run saves first. Outside the main thread, the
    context does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = socket.socketpair()  # Windows takes only sockets for this
    sender.setblocking(False)
    previous_hook, sys.unraisablehook = sys.unraisablehook, end_if_interrupted(sys.unraisablehook)
    previous_handler = signal.signal(signal.SIGINT, handle)
    previous_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, args=(receiver,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous_fd)
        signal.signal(signal.SIGINT, previous_handler)
        sys.unraisablehook = previous_hook
        sender.close()  # ends the thread


def handle(number: int, frame) -> None:
    """Raise KeyboardInterrupt; end the process if a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            end()
        frame = frame.f_back
    raise KeyboardInterrupt


def end_if_interrupted(hook):
    """A `sys.unraisablehook` that ends the process at a KeyboardInterrupt, and calls `hook` for other exceptions."""

    def new_hook(unraisable) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            error = unraisable.exc_value
            end(str(error or ""), getattr(error, "number", signal.SIGINT))
        hook(unraisable)

    return new_hook


def watch(receiver: socket.socket) -> None:
    """End the process at the second SIGINT, or GRACE_SECONDS after the first. The signals' numbers come as bytes."""
    with receiver:
        count = 0
        while count < 2:
            try:
                numbers = receiver.recv(16)
            except TimeoutError:
                break
            if not numbers:  # the context has ended
                return
            count += numbers.count(signal.SIGINT)
            if count:
                receiver.settimeout(GRACE_SECONDS)
    end()


def end(message: str = "", number: int = signal.SIGINT) -> None:
    """End the process at once, as the shell expects it after this signal."""
    with contextlib.suppress(OSError):
        os.write(2, f"{message or 'Interrupted.'}\n".encode())
    os._exit(128 + number)
