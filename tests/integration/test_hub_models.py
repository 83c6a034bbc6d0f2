"""Models of the Hub: what is said of a name, of a gated model, and where nobody answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.corpora import write_tiny_bert_with_weights
from tests.integration.hub_server import AskedHub

LOAD = """
import builtins, json, os, socket, sys, time
from huggingface_hub import constants
from stream_pretrain.config import ModelConfig
from stream_pretrain.errors import ModelError
from stream_pretrain.model.loading import load_model
from stream_pretrain.model.tokenizer import load_tokenizer

def said(**names):
    config = ModelConfig(**names)
    try:
        load_model(config, False, load_tokenizer(config), 32, 0)
    except ModelError as error:
        return str(error)

def nobody(*address, **options):
    attempts.append(address)
    raise (socket.gaierror if fault == "gaierror" else getattr(builtins, fault))(-2, "nobody answers")

attempts = []
constants.HF_HUB_OFFLINE = "OFFLINE" in os.environ  # which the server of forks has read already
if fault := os.environ.get("NOBODY"):
    socket.create_connection = nobody
    time.sleep = lambda seconds: None
told = [said(**names) for names in json.loads(sys.argv[1])]
print(json.dumps([*told, len(attempts)] if fault else told))
"""


@pytest.fixture(scope="session")  # written once, though tests of the module may be dealt out again
def hub(training_hub: AskedHub) -> AskedHub:
    models = training_hub.root / "models" / "org"
    for name in ("tiny-bert-uncased", "gated", "bare"):
        write_tiny_bert_with_weights(models / name / "main")
    (models / "gated" / ".gated").touch()
    for file in (models / "bare" / "main").glob("*token*"):
        file.unlink()
    return training_hub


def said(hub: AskedHub, *names: dict[str, str], **variables: str) -> list[Any]:
    """What is said of each of these models; none where it is loaded. With NOBODY, how often a server was looked for too."""
    done = hub.forks.run(["-c", LOAD, json.dumps(names)], hub.environment(hub.home, **variables))
    assert done.returncode == 0, done.stderr
    told: list[Any] = json.loads(done.stdout)
    return told


def test_a_name_that_leads_to_nothing_says_so_and_suggests_one(hub: AskedHub) -> None:
    hub.clear_home()
    page = f"{hub.endpoint}/org/gated"
    names = [
        {"path": "org/tiny-bert-uncasd"},
        {"path": "tiny-bert-uncasd"},
        {"path": "other/thing"},
        {"path": "org/tiny-bert-uncased", "revision": "v9"},
        {"path": "org/gated"},
        {"path": "org/bare"},
        {"config": "org/bare", "tokenizer": "org/tiny-bert-uncasd"},
        {"config": "org/tiny-bert-uncasd", "tokenizer": "org/tiny-bert-uncased"},
        {"path": "org/tiny-bert-uncased", "init_from": "org/tiny-bert"},
    ]
    told = said(hub, *names)
    nothing = "{} is neither a folder here nor a model on the Hub{} (a private one needs HF_TOKEN)"
    near = nothing.format("org/tiny-bert-uncasd", "; did you mean org/tiny-bert-uncased?")
    assert told[:5] == [
        near,
        nothing.format("tiny-bert-uncasd", "; did you mean org/tiny-bert-uncased?"),
        nothing.format("other/thing", ": check the name"),
        "org/tiny-bert-uncased has no revision v9 on the Hub: check --model.revision",
        f"org/gated is gated: ask for access at {page}, then set HF_TOKEN, or log in with `hf auth login`",
    ]
    assert told[5] is not None
    assert told[5].startswith("no tokenizer in org/bare: ")
    assert told[5].endswith("; name one with --model.tokenizer")
    assert told[6:] == [near, near, nothing.format("org/tiny-bert", "; did you mean org/tiny-bert-uncased?")]
    [with_token] = said(hub, {"path": "org/gated"}, HF_TOKEN="hf_canary")
    assert with_token == f"org/gated is gated, and the account of your HF_TOKEN has no access: ask for it at {page}"


def test_a_token_that_the_hub_refuses_is_said(hub: AskedHub) -> None:
    hub.fail(r"GET /api/models/org/tiny", 403)
    assert said(hub, {"path": "org/tiny-bert-uncased"}, HF_TOKEN="hf_old") == [
        "org/tiny-bert-uncased: the Hub refuses your token: set another HF_TOKEN, or log in with `hf auth login`"
    ]


def test_a_hub_that_is_busy_is_asked_again_by_those_that_read_from_it(hub: AskedHub) -> None:
    hub.fail(r"GET /api/models/org/tiny", 503)
    assert said(hub, {"path": "org/tiny-bert-uncased"}) == [None]


@pytest.mark.parametrize(("fault", "attempts"), [("gaierror", 3), ("ConnectionRefusedError", 3), ("TimeoutError", 1)])
def test_where_is_unreachable_the_cache_is_read_after_a_few_attempts(hub: AskedHub, fault: str, attempts: int) -> None:
    cached, unknown = {"path": "org/tiny-bert-uncased"}, {"path": "org/tiny-bert-uncasd"}
    assert said(hub, cached) == [None]
    assert said(hub, cached, unknown, NOBODY=fault) == [
        None,
        f"org/tiny-bert-uncasd is neither a folder here nor in the cache of this machine, and {hub.endpoint} does not answer: "
        "check the network, or give a folder; did you mean org/tiny-bert-uncased?",
        3 * attempts,  # for a tokenizer, a model, and the tokenizer that there is not
    ]


def test_a_hub_that_is_not_to_be_asked_is_not(hub: AskedHub) -> None:
    cached, unknown = {"path": "org/tiny-bert-uncased"}, {"path": "org/tiny-bert-uncasd"}
    assert said(hub, cached) == [None]
    before = len(hub.requests())
    assert said(hub, cached, unknown, OFFLINE="1") == [
        None,
        "org/tiny-bert-uncasd is neither a folder here nor in the cache of this machine, and HF_HUB_OFFLINE is set: unset it, "
        "or give a folder; did you mean org/tiny-bert-uncased?",
    ]
    assert len(hub.requests()) == before
