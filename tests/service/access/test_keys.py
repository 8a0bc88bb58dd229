from __future__ import annotations

import hashlib
import hmac
import math

import pytest

from service.__main__ import main
from service.access import keys
from service.access.keys import ApiKey, find_key, make_key, parse_entries
from service.errors import SettingsError, Unauthorized
from service.settings import load_settings

DIGEST = hashlib.sha256(b"the key").hexdigest()


def test_made_key_is_found_by_its_entry_and_is_not_in_it() -> None:
    key, entry = make_key("phone-app")
    assert key not in entry
    assert key.startswith(keys.PREFIX)
    (parsed,) = parse_entries(entry)
    assert (parsed.name, find_key([parsed], f"Bearer {key}")) == ("phone-app", 0)
    assert make_key("phone-app")[0] != key


def test_entry_has_limits_in_any_order() -> None:
    (key,) = parse_entries(f"a:{DIGEST}:concurrency=4:rate=2.5:burst=20")
    assert key == ApiKey("a", bytes.fromhex(DIGEST), 2.5, 20, 4)


@pytest.mark.parametrize(("entry", "role"), [("", "user"), (":role=user", "user"), (":rate=1:role=admin", "admin")])
def test_entry_has_a_role(entry: str, role: str) -> None:
    (key,) = parse_entries(f"a:{DIGEST}{entry}")
    assert key.role == role


def test_key_that_is_made_for_an_admin_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "ops", "--admin"]) == 0
    shown, entry = (line.split()[-1] for line in capsys.readouterr().out.splitlines())
    (key,) = parse_entries(entry)
    assert (key.name, key.role, find_key([key], f"Bearer {shown}")) == ("ops", "admin", 0)


@pytest.mark.parametrize(("rate", "burst"), [("2.5", 3), ("0.1", 1)])
def test_rate_alone_allows_a_second_of_it_at_once(rate: str, burst: float) -> None:
    (key,) = parse_entries(f"a:{DIGEST}:rate={rate}")
    assert key.burst == burst


def test_entry_without_limits_is_not_limited() -> None:
    (key,) = parse_entries(f"a:{DIGEST.upper()}")
    assert (key.rate_per_s, key.burst, key.concurrency) == (None, math.inf, None)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ("top-secret", "entry 1 is not of the form NAME:SHA256"),
        (f"a:{DIGEST},top-secret", "entry 2 is not of the form"),
        ("top-secret:short", "python -m service key NAME"),
        (f"top secret:{DIGEST}", "entry 1 is not of the form"),
        (f"a:{DIGEST}:top-secret", "entry 1 has a part that is not one of"),
        (f"a:{DIGEST}:role=root", "entry 1 has a role that is not user or admin"),
        (f"a:{DIGEST}:role=admin:role=user", "each at most once"),
        (f"a:{DIGEST}:rate=1:rate=2", "each at most once"),
        (f"a:{DIGEST}:rate=0", "has a rate that is not a number above 0"),
        (f"a:{DIGEST}:rate=nan", "has a rate that is not a number above 0"),
        (f"a:{DIGEST}:rate=top-secret", "has a rate that is not a number above 0"),
        (f"a:{DIGEST}:rate=1:burst=1.5", "has a burst that is not a whole number above 0"),
        (f"a:{DIGEST}:burst=2", "has a burst without a rate"),
        (f"a:{DIGEST}:concurrency=0.5", "has a concurrency that is not a whole number above 0"),
        (f"a:{DIGEST},a:{DIGEST}", "several entries have the name a"),
    ],
)
def test_what_is_not_an_entry_is_refused_and_not_repeated(entries: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        load_settings({"api_keys": entries})
    assert "--api-keys" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert DIGEST not in str(caught.value)


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer the kex", "Basic the key", f"Bearer {DIGEST}"])
def test_anything_but_a_key_is_refused(authorization: str) -> None:
    with pytest.raises(Unauthorized):
        find_key(parse_entries(f"a:{DIGEST}"), authorization)


def test_every_key_is_compared_with_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    really_compare = hmac.compare_digest

    def compare(given: bytes, known: bytes) -> bool:
        compared.append(known)
        return really_compare(given, known)

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    known = [ApiKey(name, hashlib.sha256(name.encode()).digest()) for name in ("first", "second", "third")]
    assert find_key(known, "bearer second") == 1
    assert compared == [key.digest for key in known]


def test_command_prints_a_key_and_the_entry_that_lets_it_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "phone-app"]) == 0
    lines = capsys.readouterr().out.splitlines()
    key, entry = lines[0].split()[-1], lines[1].split()[-1]
    assert find_key(load_settings({"api_keys": entry}).api_keys, f"Bearer {key}") == 0
    assert main(["key", "no name"]) == 2
