"""The relay on the real control plane: a pod has two containers, and the agent's container has only
the agent's own credentials."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.journeys.stage import said
from tests.kubernetes.place import Place
from tests.kubernetes.story import tell
from tests.servers.githttp import serving

pytestmark = [pytest.mark.kubernetes, pytest.mark.journey, pytest.mark.timeout(900)]

PASSWORD = "the-password-of-git"
PUSH = (
    "from json import load; a = load(open('/perdure/relay/address.json')); "
    "print('http://127.0.0.1:%d/%s/git' % (a['port'], a['word']))"
)


def without_itself(word: str) -> str:
    """Return a pattern that matches the word, but not the text of the pattern itself."""
    return f"[{word[0]}]{word[1:]}"


def looks_for(*secrets: str) -> str:
    """Return the commands of an agent that looks for secrets and abuses what it finds. The words
    that they print are not in the commands themselves, because the model gets both."""
    patterns = " ".join(f"-e '{without_itself(each)}'" for each in secrets)
    return "; ".join(
        (
            f"grep -rla {patterns} /perdure /data /tmp /home /proc/[0-9]*/environ 2>/dev/null",
            'echo "se""en:" $(ls /perdure /perdure/secrets)',
            'touch /perdure/relay/x 2>/dev/null || echo "can""not write"',
            f'git push -q "$(python3 -c "{PUSH}")" HEAD:refs/heads/evil 2>/dev/null '
            '|| echo "can""not push"',
            "echo processes: $(cat /proc/[0-9]*/cmdline | tr '\\0' ' ')",
        )
    )


def test_an_agent_that_looks_for_credentials_finds_its_own_alone(
    place: Place, repository: Path, tmp_path: Path
) -> None:
    """A real agent uses a private repository and an object store. It looks for their credentials in
    files, environments and processes, and tries a push, and finds only its own. Its pod is killed.
    The next attempt has the conversation and the workdir from the store."""
    keys = place.bucket.environ()
    look = looks_for(PASSWORD, keys["AWS_SECRET_ACCESS_KEY"])
    with serving(tmp_path / "served", PASSWORD) as server:
        server.make("r", repository)
        story = tell(
            place,
            "private",
            mode="Checkpoints",
            script=f"by history\nrun {look}; echo one > one.txt\n---\nhang\nsay It is done.\n",
            service=None,
            task=None,
            repository={
                "url": server.url("r"),
                "credentialsSecretRef": {"name": place.secret("forge", {"token": PASSWORD})},
            },
        )
        story.hangs()
        pod = story.pod()
        (relay,) = pod["status"]["initContainerStatuses"]
        assert relay["name"] == "relay" and "running" in relay["state"]
        assert not pod["spec"].get("shareProcessNamespace")
        place.kill_pod(pod)
        story.went_on()
        words = said(story.rehearsal.last.messages)
        before, _, found = words.partition("seen:")
        there = found.partition("\n")[0]
        assert "credentials" in there and "relay" in there, words
        assert "repository" not in there and "checkpoints" not in there, words
        assert "cannot write" in found and "cannot push" in found, words
        assert "as-relay" not in found, words
        for secret in (PASSWORD, keys["AWS_SECRET_ACCESS_KEY"]):
            assert secret not in words
        assert "secrets/repository" not in before and "secrets/checkpoints" not in before, words
        assert "/environ\n" not in before, words
        assert server.users and not any("receive-pack" in each for each in server.asked)
        ended = [each for each in story.pods() if each["status"]["phase"] == "Succeeded"]
        (relay,) = ended[-1]["status"]["initContainerStatuses"]
        assert relay["state"]["terminated"]["exitCode"] == 0


def test_a_secret_of_the_relay_s_that_is_missing_is_named(place: Place) -> None:
    """If the repository's Secret does not exist, the TaskRun waits and names that Secret."""
    run = place.scripted(
        "keyless",
        service=None,
        task=None,
        repository={
            "url": "https://git.example.com/a/b",
            "credentialsSecretRef": {"name": "nowhere"},
        },
    )
    assert 'secret "nowhere" not found' in run.waits_for("SecretMissing")["message"]
    place.secret("nowhere", {"token": "x" * 20})
    run.settled()
