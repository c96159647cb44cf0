"""Which signals ask a server to end."""

import signal


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return those of service managers and terminals; SIGHUP not where it is ignored, as nohup asks."""
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGTERM, signal.SIGINT, *hangup)
