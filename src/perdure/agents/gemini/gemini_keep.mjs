// Loaded into Gemini CLI before its own code, by NODE_OPTIONS (see driver.py). The CLI's clean-up deletes conversations, including
// live ones. The settings that switch it off must be the user's own or belong to root. So this script makes every deletion of a
// conversation's file fail as if the file did not exist; the clean-up ignores this error. Nothing else is changed. Processes that
// the CLI starts do not inherit the script.
import fs from "node:fs";
import { syncBuiltinESMExports } from "node:module";

const CONVERSATION = /\/tmp\/[^/]+\/chats\/session-[^/]*\.jsonl?$/;

function kept(target) {
  if (!CONVERSATION.test(String(target))) return undefined;
  return Object.assign(new Error(`ENOENT: perdure keeps conversations: '${target}'`), { code: "ENOENT", path: String(target) });
}

for (const name of ["unlink", "rm"]) {
  const later = fs.promises[name];
  fs.promises[name] = async (target, ...rest) => {
    const refusal = kept(target);
    if (refusal) throw refusal;
    return later(target, ...rest);
  };
  const now = fs[`${name}Sync`];
  fs[`${name}Sync`] = (target, ...rest) => {
    const refusal = kept(target);
    if (refusal) throw refusal;
    return now(target, ...rest);
  };
}
syncBuiltinESMExports();

// Gemini CLI 0.61.0 neither prints nor stores the reason why the model's answer ended. An answer that was blocked, or cut off at the
// limit of tokens, looks like any other. So this script reads the reason from the service's answers. It prints the reason of the last
// answer as a line of its own, before the result.
const STREAMED = process.argv.some((word) => word.includes("stream-json"));
const ANSWER = /:(streamGenerateContent|generateContent)\b/;
const REASON = /"finishReason"\s*:\s*"([A-Z_]+)"/g;
const RESULT = '"type":"result"';
const BEYOND = 64; // characters that a match may reach into the next piece
let reason = "";

async function listen(body) {
  let rest = "";
  const decoder = new TextDecoder();
  for await (const piece of body) {
    const text = rest + decoder.decode(piece, { stream: true });
    let end = 0;
    for (const found of text.matchAll(REASON)) {
      end = found.index + found[0].length;
      reason = found[1];
    }
    rest = text.slice(Math.max(end, text.length - BEYOND));
  }
}

if (STREAMED && typeof globalThis.fetch === "function") {
  const fetched = globalThis.fetch;
  globalThis.fetch = async (...given) => {
    const response = await fetched(...given);
    const address = String(given[0]?.url ?? given[0]);
    if (response.ok && response.body && ANSWER.test(address)) listen(response.clone().body).catch(() => undefined);
    return response;
  };
  const write = process.stdout.write.bind(process.stdout);
  process.stdout.write = (piece, ...rest) => {
    if (reason && typeof piece === "string" && piece.includes(RESULT)) {
      write(`${JSON.stringify({ type: "perdure_finish", reason })}\n`);
      reason = "";
    }
    return write(piece, ...rest);
  };
}

const left = (process.env.NODE_OPTIONS ?? "").split(" ").filter((word) => word !== `--import=${import.meta.url}`).join(" ");
if (left) process.env.NODE_OPTIONS = left;
else delete process.env.NODE_OPTIONS;
