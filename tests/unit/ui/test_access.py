import asyncio

import pytest

from megatron_lwz.cli import common, ui
from megatron_lwz.ui import access
from megatron_lwz.ui.access import HEADERS

from .conftest import TOKEN, served

PATHS = (
    "/",
    "/runs/novels",
    "/runs/novels/rollouts",
    "/runs/novels/rollouts/0/0",
    "/runs/novels/rollouts/0/0/bands",
    "/static/ui.css",
)


def test_nothing_is_shown_without_the_token(pages):
    for path, (status, text, headers) in zip(PATHS, pages(*PATHS, anonymous=True), strict=True):
        assert status == 401 and "river" not in text, path
        assert "Content-Security-Policy" in headers
    ((status, _, _),) = pages("/runs/novels?token=wrong", anonymous=True)
    assert status == 401


def test_the_token_becomes_a_cookie_and_leaves_the_address(pages):
    ((status, _, headers),) = pages(f"/runs/novels/rollouts?q=%E6%B2%B3&token={TOKEN}", anonymous=True)
    assert status == 303 and headers["Location"] == "/runs/novels/rollouts?q=%E6%B2%B3"
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/" in cookie and cookie.startswith("lwz_ui_")
    _, _, value = cookie.partition(";")[0].partition("=")
    assert value == TOKEN
    assert access._local("//evil.example/a") == access._local("/\\evil.example/a") == "/evil.example/a"


def test_a_cookie_lets_in(reading_run):
    async def main():
        async with served(reading_run) as (client, _):
            name = f"lwz_ui_{client._base_url.port}"
            headers = {"Authorization": "", "Cookie": f"{name}={TOKEN}"}
            async with client.get("/runs/novels", headers=headers) as answer:
                return answer.status

    assert asyncio.run(main()) == 200


def test_other_names_and_other_origins_are_refused(pages):
    assert pages("/runs/novels", headers={"Host": "evil.example"})[0][0] == 421
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:9"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"},
    ):
        assert pages("/runs/novels", headers=headers)[0][0] == 403, headers
    navigation = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert pages("/runs/novels", headers=navigation)[0][0] == 200


def test_every_answer_carries_the_headers_and_the_policy_allows_own_files_only(pages):
    for status, _, headers in pages(*PATHS, "/nothing", "/static/..%2Fserver.py", "/runs/other"):
        assert status in (200, 303, 404)
        assert all(headers[name] for name in HEADERS)
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy and "*" not in policy


def test_pages_hold_no_inline_script_style_or_foreign_address(pages):
    for _, text, _ in pages(
        "/runs/novels", "/runs/novels/rollouts", "/runs/novels/rollouts/0/0", "/runs/novels/groups/2"
    ):
        assert " style=" not in text and "<style" not in text and " onclick" not in text
        assert text.count("<script") == text.count('<script type="module" src="/static/')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/run"], "is this a run folder"),
        ([], "RUN"),
        (["--port", "x", "a"], "--port"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments, message, capsys):
    assert common.run(ui.main, arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_short_token_is_refused(monkeypatch, reading_run, capsys):
    monkeypatch.setenv("LWZ_UI_TOKEN", "short")
    assert common.run(ui.main, [str(reading_run)]) == 2
    assert "LWZ_UI_TOKEN has 5 characters" in capsys.readouterr().err
