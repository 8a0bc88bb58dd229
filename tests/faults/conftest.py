from __future__ import annotations

from tests.service.engine.conftest import running as running
from tests.service.engine.conftest import session as session
