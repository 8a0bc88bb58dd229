"""`python -m service` with a model whose next run breaks the engine, or never ends, once a file says so.

The file is named by the variable FAULT_FILE and holds `break` or `hang`; it is removed by the run that obeys.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from service.__main__ import main
from service.engine.runtime.session import OnnxSession

MODULE = "tests.faults.faulty_service"
FAULT_FILE = "FAULT_FILE"


class Lethal(BaseException):
    """What no run should raise, and the engine does not survive."""


def _with_faults() -> None:
    fault, run = Path(os.environ[FAULT_FILE]), OnnxSession.run

    def faulty(self: OnnxSession, *arguments: Any) -> Any:
        if fault.exists():
            kind = fault.read_text()
            fault.unlink()
            if kind == "hang":
                threading.Event().wait()
            raise Lethal
        return run(self, *arguments)

    OnnxSession.run = faulty  # type: ignore[method-assign]


if __name__ == "__main__":
    _with_faults()
    sys.exit(main())
