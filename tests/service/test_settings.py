"""Settings: what the environment says, and what it may not say."""

from pathlib import Path

import pytest

from service.settings import Settings, SettingsInvalid, load_settings

FLOATS = [name for name, field in Settings.model_fields.items() if "float" in f"{field.annotation}"]


def test_variables_become_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are comma-separated; numbers are parsed."""
    monkeypatch.setenv("SLIMRANK_MODELS", "ctr@prod, session ,")
    monkeypatch.setenv("SLIMRANK_PORT", "9000")

    settings = load_settings()

    assert (settings.models, settings.port) == (("ctr@prod", "session"), 9000)


def test_an_unknown_variable_is_refused_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mistyped name would otherwise be ignored in silence."""
    monkeypatch.setenv("SLIMRANK_MODLES", "ctr")

    with pytest.raises(SettingsInvalid, match="MODLES is not a setting; did you mean SLIMRANK_MOD"):
        load_settings()


def test_a_setting_that_is_gone_names_what_came_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is off the event loop is told in microseconds, no longer in MFLOPs."""
    monkeypatch.setenv("SLIMRANK_INLINE_MFLOPS", "50")

    with pytest.raises(
        SettingsInvalid, match=r"INLINE_MFLOPS is .* did you mean SLIMRANK_INLINE_US"
    ):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PORT", "http", "SLIMRANK_PORT: Input should be a valid integer"),
        ("WORKERS", "0", "SLIMRANK_WORKERS"),
        ("CACHE", "localhost", "^SLIMRANK_CACHE: expected a URL like memory://"),
        ("MODELS", "a,a", "listed twice"),
        ("KEYS", "nope", "^SLIMRANK_KEYS: not JSON$"),
        ("KEYS", "[]", "^SLIMRANK_KEYS: expected a JSON object"),
        ("KEYS", "{}", "expected a JSON object"),
        ("KEYS", '{"s3cret": ["rank"], "t": ["root"]}', "entry 2: expected a list of scopes among"),
        ("KEYS", '{"s3cret": "rank"}', "^SLIMRANK_KEYS: entry 1"),
        ("KEYS", '{"s3cret": [["rank"]]}', "^SLIMRANK_KEYS: entry 1"),
        ("KEYS_FILE", "/no/such/file", "SLIMRANK_KEYS_FILE"),
        ("TRUSTED_PROXIES", "10.0.0.1,garbage", "^SLIMRANK_TRUSTED_PROXIES: .* got 'garbage'"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """By variable and reason, and without quoting a secret."""
    monkeypatch.setenv(f"SLIMRANK_{name}", value)

    with pytest.raises(SettingsInvalid, match=said) as caught:
        load_settings()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "field",
    [name for name, field in Settings.model_fields.items() if "float" in f"{field.annotation}"],
)
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_number_is_finite(field: str, value: str) -> None:
    """A delay without end would never let the service go."""
    with pytest.raises(ValueError, match="finite"):
        Settings(**{field: value})


@pytest.mark.parametrize("proxies", ["*", "10.0.0.1, fd00::/8", "127.0.0.1"])
def test_proxies_are_addresses_or_networks(proxies: str) -> None:
    """Or everybody."""
    assert Settings(trusted_proxies=proxies).trusted_proxies == proxies


def test_keys_come_from_a_file_or_from_a_variable_not_both(tmp_path: Path) -> None:
    """Two sources would leave it open which one counts."""
    file = tmp_path / "keys.json"
    file.write_text('{"k": ["rank", "metrics"]}')

    assert Settings(keys_file=file).api_keys() == {"k": frozenset({"rank", "metrics"})}
    assert Settings().api_keys() == {}
    with pytest.raises(ValueError, match="set SLIMRANK_KEYS or SLIMRANK_KEYS_FILE, not both"):
        Settings(keys_file=file, keys='{"k": ["rank"]}')


def test_a_file_of_keys_that_makes_no_sense_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own variable, and without quoting what is in it."""
    file = tmp_path / "keys.json"
    file.write_bytes(b"s3cret\xff")
    monkeypatch.setenv("SLIMRANK_KEYS_FILE", f"{file}")

    with pytest.raises(SettingsInvalid, match=r"^SLIMRANK_KEYS_FILE: not JSON$"):
        load_settings()


def test_every_setting_is_described_and_frozen() -> None:
    """The description is what docs/operations.md prints."""
    assert all(field.description for field in Settings.model_fields.values())
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


def test_keys_do_not_show_in_print() -> None:
    """Whoever logs the settings logs no secret."""
    assert "s3cret" not in repr(Settings(keys='{"s3cret": ["rank"]}'))
