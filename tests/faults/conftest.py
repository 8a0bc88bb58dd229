from __future__ import annotations

from tests.engine.conftest import running as running
from tests.engine.conftest import session as session
