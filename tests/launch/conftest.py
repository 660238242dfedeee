"""Makes `server_process` importable by the tests beside it, and Ctrl-C as it is in a terminal."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background; servers would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
