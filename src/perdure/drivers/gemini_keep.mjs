// Loaded into Gemini CLI before its own code, by NODE_OPTIONS (see gemini.py). The CLI's clean-up deletes conversations, live ones
// too; the settings that switch it off must be the user's own or belong to root. So here a conversation's file cannot be deleted:
// it looks as if it were gone already, which the clean-up passes over. Nothing else is changed, and no child inherits this.
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

const left = (process.env.NODE_OPTIONS ?? "").split(" ").filter((word) => word !== `--import=${import.meta.url}`).join(" ");
if (left) process.env.NODE_OPTIONS = left;
else delete process.env.NODE_OPTIONS;
