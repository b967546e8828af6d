"""The settings: where they come from, which are refused, and what is never told."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serai.errors import ConfigurationError
from serai.settings import Settings, client_settings, is_loopback, load

SECRET = "planted-secret-that-must-never-be-shown-0123456789"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of this machine is found: the working folder and the user's home are the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in list(os.environ):
        if name.startswith("SERAI_"):
            monkeypatch.delenv(name)


def refusal(environment: dict[str, str] | None = None, toml: str | None = None, **overrides: Any) -> str:
    """Return message and hint of the refusal that these settings meet."""
    file = None
    if toml is not None:
        file = Path("given.toml")
        file.write_text(toml, "utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load(environment or {}, file, overrides)
    return f"{caught.value.message} {caught.value.hint}"


def test_the_defaults_serve_one_machine_with_nothing_else_installed(tmp_path: Path) -> None:
    """SQLite and blobs under the home, memory cache, auth on, loopback."""
    settings = load({})
    assert settings == Settings()
    assert settings.home == tmp_path / "user" / ".serai"
    assert settings.sqlite_path == settings.home / "serai.db"
    assert settings.blobs_folder == settings.home / "blobs"
    assert (settings.host, settings.port, settings.auth, settings.profile) == ("127.0.0.1", 8713, "on", "development")
    assert (settings.database_url, settings.redis_url, settings.cors_origins) == (None, None, ())


def test_every_setting_says_what_it_is() -> None:
    """Each field has a description that ends like a sentence: it is the documentation."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_a_toml_file_is_read() -> None:
    """Numbers, words and lists of the file arrive."""
    Path("other.toml").write_text('port = 9000\nlog_level = "debug"\ncors_origins = ["https://a.example"]\n')
    settings = load({}, Path("other.toml"))
    assert (settings.port, settings.log_level, settings.cors_origins) == (9000, "debug", ("https://a.example",))


@pytest.mark.parametrize("place", ["serai.toml", "user/.serai/serai.toml", "chosen/serai.toml"])
def test_the_file_is_found_by_itself(place: str) -> None:
    """In the working folder, in the default home, and in the home that the environment names."""
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).write_text("port = 9001\n")
    environment = {"SERAI_HOME": "chosen"} if place.startswith("chosen") else {}
    assert load(environment).port == 9001


def test_the_environment_names_the_file() -> None:
    """SERAI_CONFIG is read instead of what would be found, and must exist."""
    Path("serai.toml").write_text("port = 1\n")
    Path("named.toml").write_text("port = 9002\n")
    assert load({"SERAI_CONFIG": "named.toml"}).port == 9002
    assert "missing.toml does not exist" in refusal({"SERAI_CONFIG": "missing.toml"})


def test_the_environment_is_read_by_type() -> None:
    """Text becomes numbers, paths and lists; parts of a list are separated by commas."""
    settings = load(
        {"SERAI_PORT": "0", "SERAI_HOME": "~/x", "SERAI_ALLOWED_HOSTS": "a.example, B.example,", "HOME": "ignored"}
    )
    assert (settings.port, settings.allowed_hosts) == (0, ("a.example", "b.example"))
    assert settings.home.is_absolute()
    assert settings.home.name == "x"


def test_the_command_line_wins_over_the_environment_and_that_over_the_file() -> None:
    """Each source replaces what the ones before it said; an option that was not given replaces nothing."""
    Path("serai.toml").write_text('port = 1\nhost = "127.0.0.2"\nlog_level = "debug"\n')
    settings = load({"SERAI_PORT": "2", "SERAI_HOST": "127.0.0.3"}, overrides={"port": 3, "host": None})
    assert (settings.port, settings.host, settings.log_level) == (3, "127.0.0.3", "debug")


def test_a_value_may_lie_in_a_file() -> None:
    """…_FILE is read without the line break at its end, for any setting."""
    Path("value").write_text("postgresql://serai:pw@db/serai\n")
    assert load({"SERAI_DATABASE_URL_FILE": "value"}).database_url == "postgresql://serai:pw@db/serai"
    assert "SERAI_JWT_SECRET_FILE names a file that cannot be read" in refusal({"SERAI_JWT_SECRET_FILE": "none"})


def test_named_secrets_come_from_variables_and_from_files() -> None:
    """SERAI_SECRET_<NAME> and SERAI_SECRET_<NAME>_FILE fill the same mapping, by names in lower case."""
    Path("token").write_text("from a file\n")
    settings = load({"SERAI_SECRET_HUB": "given", "SERAI_SECRET_MIRROR_FILE": "token"})
    assert {k: v.get_secret_value() for k, v in settings.secrets.items()} == {"hub": "given", "mirror": "from a file"}


@pytest.mark.parametrize("name", ["JWT_SECRET", "SECRET_HUB"])
def test_a_value_given_twice_is_refused(name: str) -> None:
    """A variable and its …_FILE contradict each other: neither silently wins, in either order."""
    Path("value").write_text(SECRET)
    pair = [(f"SERAI_{name}", SECRET), (f"SERAI_{name}_FILE", "value")]
    for order in (pair, pair[::-1]):
        said = refusal(dict(order))
        assert f"SERAI_{name} and SERAI_{name}_FILE are both set" in said
        assert SECRET not in said


@pytest.mark.parametrize(
    ("environment", "toml", "said"),
    [
        ({"SERAI_PROT": "1"}, None, "SERAI_PROT is not a setting. Did you mean port?"),
        ({"SERAI_LOGLEVEL": "info"}, None, "Did you mean log_level?"),
        ({"SERAI_XYZZYQ": "1"}, None, "SERAI_XYZZYQ is not a setting."),
        ({"SERAI_NO_SUCH_FILE": "/etc/passwd"}, None, "SERAI_NO_SUCH_FILE"),
        ({"SERAI_SECRETS": "x", "SERAI_SECRET_HUB": "y"}, None, "SERAI_SECRETS is not a setting."),
        ({}, "prot = 1", "prot is not a setting. Did you mean port?"),
        ({}, "[server]\nport = 1", "server is not a setting."),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(
    environment: dict[str, str], toml: str | None, said: str
) -> None:
    """A typing error stops the start and says what may have been meant."""
    assert said in refusal(environment, toml)


@pytest.mark.parametrize(
    ("environment", "key", "value", "allowed"),
    [
        ({"SERAI_PORT": "65536"}, "port", "'65536'", "less than or equal to 65535"),
        ({"SERAI_PORT": "http"}, "port", "'http'", "valid integer"),
        ({"SERAI_LOG_LEVEL": "loud"}, "log_level", "'loud'", "'debug', 'info', 'warning' or 'error'"),
        ({"SERAI_JWT_TTL_S": "0"}, "jwt_ttl_s", "'0'", "greater than 0"),
        ({"SERAI_JWT_TTL_S": "inf"}, "jwt_ttl_s", "'inf'", "finite"),
        ({"SERAI_JWT_TTL_S": "nan"}, "jwt_ttl_s", "'nan'", "finite"),
        ({"SERAI_CORS_ORIGINS": "*"}, "cors_origins", "['*']", "without wildcard or path"),
        ({"SERAI_CORS_ORIGINS": "https://a.example/x"}, "cors_origins", "a.example/x", "without wildcard or path"),
        ({"SERAI_TRUSTED_PROXIES": "10.0.0.0/33"}, "trusted_proxies", "10.0.0.0/33", "does not appear to be"),
        ({"SERAI_PUBLIC_URL": "https://a.example/serai"}, "public_url", "a.example/serai", "match pattern"),
        ({"SERAI_DATABASE_URL": "mysql://h/d"}, "database_url", "'mysql://h/d'", "postgresql"),
        ({"SERAI_MAX_BODY_BYTES": "-1"}, "max_body_bytes", "'-1'", "greater than or equal to 0"),
    ],
)
def test_a_bad_value_names_key_value_and_what_is_allowed(
    environment: dict[str, str], key: str, value: str, allowed: str
) -> None:
    """One line holds all that is needed to put it right."""
    said = refusal(environment)
    assert f"{key} = " in said
    assert value in said
    assert allowed in said


def test_every_problem_is_told_at_once() -> None:
    """Two bad values are two lines."""
    said = refusal({"SERAI_PORT": "x", "SERAI_PROFILE": "staging"})
    assert "port = 'x'" in said
    assert "profile = 'staging'" in said


def test_a_file_that_is_no_toml_is_refused() -> None:
    """The place in the file is told."""
    assert "line 1" in refusal(toml="port = = 1")


@pytest.mark.parametrize("key", ["jwt_secret", "jwt_previous_secrets", "secrets_key", "secrets"])
def test_a_secret_in_the_file_is_refused(key: str) -> None:
    """A secret in serai.toml stops the start and says where it belongs."""
    said = refusal(toml=f'{key} = "{SECRET}"')
    assert f"{key}: a secret does not belong in given.toml" in said
    assert f"SERAI_{key.upper()}_FILE" in said
    assert SECRET not in said


@pytest.mark.parametrize(
    "environment",
    [
        {"SERAI_JWT_SECRET": "planted", "SERAI_PORT": "x"},
        {"SERAI_SECRETS_KEY": "planted"},
        {"SERAI_JWT_PREVIOUS_SECRETS": "planted," + "x" * 32},
        {"SERAI_DATABASE_URL": "postgres://serai:planted@db/serai"},
        {"SERAI_DATABASE_URL": "planted"},
        {"SERAI_REDIS_URL": "http://:planted@cache"},
        {"SERAI_REDIS_URL": "memcached://h?password=planted"},
    ],
)
def test_a_refusal_never_repeats_a_secret(environment: dict[str, str]) -> None:
    """Whatever is wrong with a secret or with a URL that may hold a password, its value is not told."""
    assert "planted" not in refusal(environment)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://serai:{SECRET}@db/serai",
        f"postgresql://serai@db/serai?sslmode=require&password={SECRET}",
        f"postgresql://serai@db/serai?sslpassword={SECRET}&x=1",
        f"postgresql://serai:a@b:{SECRET}@db/serai",
    ],
)
def test_secrets_are_stars_wherever_settings_are_shown(url: str) -> None:
    """repr, str, public() and its JSON hold neither secrets nor passwords, but the rest."""
    settings = Settings(
        jwt_secret=SECRET,
        jwt_previous_secrets=[SECRET],
        secrets_key=SECRET,
        secrets={"hub": SECRET},
        database_url=url,
        redis_url=f"redis://:{SECRET}@cache:6379/1",
    )
    shown = settings.public()
    for text in (repr(settings), str(settings), f"{settings}", json.dumps(shown)):
        assert SECRET not in text
        assert "@db/serai" in text
        assert "cache:6379/1" in text
    assert set(shown) == set(Settings.model_fields)
    assert settings.database_url == url


def test_a_short_secret_is_refused() -> None:
    """Less than 32 characters cannot sign or encrypt, not even as a former secret."""
    assert "jwt_secret = a secret" in refusal({"SERAI_JWT_SECRET": "x" * 31})
    assert "jwt_previous_secrets = a secret" in refusal({"SERAI_JWT_PREVIOUS_SECRETS": "x" * 31})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "127.0.0.1.example.com"])
def test_auth_off_is_refused_on_an_address_that_others_reach(host: str) -> None:
    """Without keys only this machine may call."""
    assert f"auth = 'off' is not allowed with host = '{host}'" in refusal({"SERAI_AUTH": "off", "SERAI_HOST": host})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_auth_off_is_allowed_on_loopback(host: str) -> None:
    """A private machine may go without keys, in development."""
    assert load({"SERAI_AUTH": "off", "SERAI_HOST": host}).auth == "off"
    assert is_loopback(host)
    said = refusal({"SERAI_AUTH": "off", "SERAI_HOST": host, "SERAI_PROFILE": "production"})
    assert "auth = 'off' is not allowed with profile = 'production'" in said


def test_settings_are_frozen() -> None:
    """Nothing changes a setting of a running server."""
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.port = 1


def test_an_unknown_home_is_refused() -> None:
    """The tilde of a user that does not exist is no crash."""
    assert "a user that is not known" in refusal({"SERAI_HOME": "~no-such-user-here/serai"})


def test_names_of_hosts_know_no_case() -> None:
    """Browsers send names in lower case, and they are compared as text."""
    settings = Settings(
        allowed_hosts=["Serai.Example"], cors_origins=["https://App.Example"], public_url="https://Serai.Example"
    )
    assert settings.allowed_hosts == ("serai.example",)
    assert settings.cors_origins == ("https://app.example",)
    assert settings.public_url == "https://serai.example"


class TestTheCommandLineAsAClient:
    """Where the command line finds the server and its key."""

    def test_it_finds_this_machines_server_and_its_first_key(self, tmp_path: Path) -> None:
        """Without anything given, the settings name the server, and its home holds the key."""
        home = tmp_path / "user" / ".serai"
        home.mkdir(parents=True)
        (home / "admin.key").write_text("sk-serai-x\n")
        found = client_settings(None, None)
        assert (found.url, found.api_key) == ("http://127.0.0.1:8713", "sk-serai-x")

    def test_the_key_of_this_machine_goes_to_no_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that was named does not get the key of the home."""
        home = tmp_path / "user" / ".serai"
        home.mkdir(parents=True)
        (home / "admin.key").write_text("sk-serai-x\n")
        assert client_settings("http://other.example/", None).api_key is None
        monkeypatch.setenv("SERAI_URL", "http://other.example")
        assert client_settings(None, None).api_key is None
        monkeypatch.setenv("SERAI_API_KEY", "theirs")
        assert client_settings(None, None).api_key == "theirs"
        assert client_settings(None, "mine").api_key == "mine"

    def test_an_address_of_version_six_is_bracketed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """::1 becomes a URL that clients understand."""
        monkeypatch.setenv("SERAI_HOST", "::1")
        assert client_settings(None, None).url == "http://[::1]:8713"


@given(st.dictionaries(st.text(max_size=20).map("SERAI_".__add__), st.text(max_size=20), max_size=4))
def test_no_environment_makes_it_crash(environment: dict[str, str]) -> None:
    """Whatever the variables hold, the answer is settings or one error of ours."""
    with suppress(ConfigurationError):
        assert isinstance(load(environment), Settings)


def test_a_table_is_written_in_one_variable() -> None:
    """SERAI_MODEL_ROOTS holds name=path, separated by commas."""
    found = load({"SERAI_MODEL_ROOTS": "disk=/srv/models, usb = /mnt/usb"})
    assert found.model_roots == {"disk": Path("/srv/models"), "usb": Path("/mnt/usb")}


@pytest.mark.parametrize("text", ["disk", "=/srv", "disk=", '{"disk": "/srv"}', '{"disk": "a=b"}'])
def test_a_table_of_another_form_is_refused(text: str) -> None:
    """The error names the variable and says how it is written."""
    with pytest.raises(ConfigurationError, match="SERAI_MODEL_ROOTS is written name=value"):
        load({"SERAI_MODEL_ROOTS": text})
