"""API keys of a service of several workers."""

from __future__ import annotations

from pathlib import Path

import httpx

from service.access.keys import make_key
from tests.integration.conftest import service_process
from tests.service.pictures import photo

BURST = 6


def test_workers_share_a_keys_limit_and_say_its_name(repository: Path) -> None:
    key, entry = make_key("phone-app")
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "image/jpeg"}
    options = ("--workers", "2", "--api-keys", f"{entry}:rate=0.001:burst={BURST}")
    with service_process(repository, *options) as process:
        url = f"http://127.0.0.1:{process.port}"
        # A connection each: whichever worker takes it, the account is the same.
        answers = [httpx.post(f"{url}/v1/classify", content=photo("JPEG"), headers=headers) for _ in range(BURST * 2)]
        metrics = httpx.get(f"{url}/metrics").text
        lines = process.wait_for_all(*["request"] * len(answers))
    assert sorted(answer.status_code for answer in answers) == [200] * BURST + [429] * BURST
    assert {answer.json()["code"] for answer in answers if answer.status_code == 429} == {"rate_limited"}
    assert f'dat_key_requests_total{{code="ok",key="phone-app"}} {BURST}.0' in metrics
    assert {line["key"] for line in lines} == {"phone-app"}
    assert key not in str(process.lines)
