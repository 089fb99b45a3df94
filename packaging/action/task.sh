#!/usr/bin/env bash
# Run one perdure task, or continue it from the capsule of an earlier job, and write its capsule. Called by action.yml.
#
# Everything comes in variables and nothing is pasted into this text, because prompts and names may be written by strangers:
#   TASK_NAME  TASK_PROMPT  TASK_DIRECTORY (where the earlier capsule is, and the new one goes)  and, each if it is set,
#   TASK_AGENT TASK_MODEL TASK_PERMISSIONS TASK_TIMEOUT TASK_ATTEMPTS TASK_BUDGET_USD TASK_VERIFY
# Outputs, in GITHUB_OUTPUT: state, code, result, branch, workdir, capsule. Exits with the code of perdure.
set -euo pipefail

: "${TASK_NAME:?}" "${TASK_DIRECTORY:?}"
mkdir -p "$TASK_DIRECTORY"
earlier=$(find "$TASK_DIRECTORY" -maxdepth 1 -name '*.capsule' -type f | sort | tail -n 1)
report=$TASK_DIRECTORY/run.json

limits=()
limit() { if [ -n "$2" ]; then limits+=("$1" "$2"); fi; }
limit --model "${TASK_MODEL:-}"
limit --timeout "${TASK_TIMEOUT:-}"
limit --attempts "${TASK_ATTEMPTS:-}"
limit --budget-usd "${TASK_BUDGET_USD:-}"

new=()
for pair in "--agent=${TASK_AGENT:-}" "--permissions=${TASK_PERMISSIONS:-}"; do
  if [ -n "${pair#*=}" ]; then new+=("$pair"); fi
done
# The check of this job. The check in a capsule is not run: a stranger may have written it.
check=()
if [ -n "${TASK_VERIFY:-}" ]; then check=("--verify=$TASK_VERIFY"); fi
# A run from a capsule gets no more than this machine grants; the settings of the job are that grant.
if [ -n "${TASK_PERMISSIONS:-}" ]; then export PERDURE_PERMISSIONS=$TASK_PERMISSIONS; fi

state_of() { perdure show "$TASK_NAME" --json 2>/dev/null | python3 -c 'import json, sys; print(json.load(sys.stdin)["state"])' || true; }

state=$(state_of)
if [ -z "$state" ] && [ -n "$earlier" ]; then
  echo "continuing from ${earlier##*/}"
  perdure import "$earlier" --repo . --name "$TASK_NAME" "${check[@]}"
  state=$(state_of)
fi

code=0
case $state in
  "") printf '%s' "${TASK_PROMPT:?a new task needs a prompt}" |
    perdure run --quiet --json --name "$TASK_NAME" "${new[@]}" "${check[@]}" "${limits[@]}" --prompt-file - >"$report" || code=$? ;;
  succeeded) if [ -n "${TASK_PROMPT:-}" ]; then
    printf '%s' "$TASK_PROMPT" | perdure update --quiet --json --prompt-file - "$TASK_NAME" >"$report" || code=$?
  else
    perdure show "$TASK_NAME" --json >"$report"
  fi ;;
  *) perdure retry --quiet --json "${limits[@]}" "$TASK_NAME" >"$report" || code=$? ;;
esac

# Secrets never go into an artifact: they are starred out in what was said, and files that hold one are left out.
capsule=$TASK_DIRECTORY/$TASK_NAME.capsule
rm -f "$TASK_DIRECTORY/.new.capsule"
if perdure export "$TASK_NAME" --redact --leave-out -o "$TASK_DIRECTORY/.new.capsule"; then
  if [ -n "$earlier" ]; then rm -f "$earlier"; fi
  mv -f "$TASK_DIRECTORY/.new.capsule" "$capsule"
else
  # Nothing was saved before the agent's first turn ended: an earlier capsule stays as it is.
  capsule=$earlier
fi

CAPSULE=$capsule CODE=$code python3 - "$report" <<'PYTHON'
import json
import os
import secrets
import sys

try:
    with open(sys.argv[1], encoding="utf-8") as file:
        run = json.load(file)
except (OSError, ValueError):
    run = {}
place = run.get("workspace") or {}
outputs = {
    "state": run.get("state", ""),
    "code": os.environ["CODE"],
    "result": run.get("result", ""),
    "branch": place.get("branch", ""),
    "workdir": place.get("path", ""),
    "capsule": os.environ["CAPSULE"],
}
with open(os.environ.get("GITHUB_OUTPUT") or os.devnull, "a", encoding="utf-8") as file:
    for name, value in outputs.items():
        # The agent's words end no value: the mark that does is random.
        mark = secrets.token_hex(16)
        file.write(f"{name}<<{mark}\n{value}\n{mark}\n")
receipts = [(each.get("receipt") or {}).get("verdict", "none") for each in run.get("attempts", [])]
quoted = "\n".join(f"> {line}" for line in outputs["result"].splitlines())
with open(os.environ.get("GITHUB_STEP_SUMMARY") or os.devnull, "a", encoding="utf-8") as file:
    file.write(f"### perdure: {run.get('name', '')} {outputs['state']}\n\n")
    file.write(f"Conversation by attempt: {', '.join(receipts) or 'none'}\n\n{quoted}\n")
PYTHON
exit "$code"
