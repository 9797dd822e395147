"""How each agent command line is set up for a model's API of our own: files in its home, and its environment."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

Setup = Callable[[str, Path], Mapping[str, str]]
"""Write what is needed into a home, for an address; gives the environment."""

MODEL = {"gemini": "gemini-2.5-flash"}
"""The models to name: else this one asks a model which model to ask."""


def _claude(url: str, home: Path) -> Mapping[str, str]:
    subscribes = url.endswith("/used-up")  # it tells of such limits to nobody else
    return {
        "ANTHROPIC_BASE_URL": url,
        "CLAUDE_CODE_OAUTH_TOKEN" if subscribes else "ANTHROPIC_API_KEY": "sk-ant-dummy",
        "CLAUDE_CONFIG_DIR": str(home / ".claude"),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "IS_SANDBOX": "1",  # else it takes no orders as root
    }


def _codex(url: str, home: Path) -> Mapping[str, str]:
    _write(
        home / ".codex" / "config.toml",
        f"""
model = "fake"
model_provider = "fake"
check_for_update_on_startup = false
[model_providers.fake]
name = "fake"
base_url = "{url}/v1"
wire_api = "responses"
env_key = "OPENAI_API_KEY"
request_max_retries = 0
stream_max_retries = 0
[analytics]
enabled = false
[otel]
metrics_exporter = "none"
[features]
plugins = false
apps = false
shell_snapshot = false
""",
    )
    return {"CODEX_HOME": str(home / ".codex"), "OPENAI_API_KEY": "sk-dummy"}


def _gemini(url: str, home: Path) -> Mapping[str, str]:
    settings = {
        "general": {"maxAttempts": 1, "enableAutoUpdate": False, "enableAutoUpdateNotification": False},
        "privacy": {"usageStatisticsEnabled": False},
        "security": {"auth": {"selectedType": "gemini-api-key"}},
    }
    _write(home / ".gemini" / "settings.json", json.dumps(settings))
    return {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "dummy"}


def _pi(url: str, home: Path) -> Mapping[str, str]:
    model = {"id": "m", "contextWindow": 100_000, "maxTokens": 4096}
    provider = {"baseUrl": f"{url}/v1", "api": "openai-completions", "apiKey": "dummy", "models": [model]}
    _write(home / ".pi" / "agent" / "models.json", json.dumps({"providers": {"fake": provider}}))
    settings = {
        "defaultProvider": "fake",
        "defaultModel": "m",
        "retry": {"enabled": False, "maxRetries": 0, "provider": {"maxRetries": 0}},
    }
    _write(home / ".pi" / "agent" / "settings.json", json.dumps(settings))
    return {"PI_OFFLINE": "1"}


def _opencode(url: str, home: Path) -> Mapping[str, str]:
    model = {"tool_call": True, "limit": {"context": 100_000, "output": 4096}}
    options = {"baseURL": f"{url}/v1", "apiKey": "dummy"}
    provider = {"npm": "@ai-sdk/openai-compatible", "options": options, "models": {"m": model}}
    settings = {"share": "disabled", "model": "fake/m", "small_model": "fake/m", "provider": {"fake": provider}}
    return {
        "OPENCODE_CONFIG_CONTENT": json.dumps(settings),
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    }


SETUPS: Mapping[str, Setup] = {
    "claude-code": _claude,
    "codex": _codex,
    "gemini": _gemini,
    "opencode": _opencode,
    "pi": _pi,
}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
