// Loaded into `gemini --acp` by gemini_bridge.py. Over ACP, Gemini CLI 0.61.0 asks for a permission without the arguments of the
// call. It also reports neither the tokens of cached input nor the reason why an answer ended. So this script reads all of this from
// the service's answers. It prints a line as soon as the CLI parses a piece of an answer, always before the CLI can ask for a
// permission for a call in that piece. The client of the Gemini API parses pieces by `Response.json`, the client for a Google account
// by `JSON.parse`. `Response.json` may call `JSON.parse`, so each piece is reported only once.
const write = process.stdout.write.bind(process.stdout);
const known = new WeakSet();

function report(value) {
  const candidate = (value?.response ?? value)?.candidates?.[0];
  if (!candidate || typeof candidate !== "object" || known.has(candidate)) return value;
  known.add(candidate);
  const parts = Array.isArray(candidate.content?.parts) ? candidate.content.parts : [];
  const calls = [];
  for (const { functionCall: call } of parts) if (call) calls.push({ id: call.id ?? "", name: call.name ?? "", args: call.args ?? {} });
  const said = parts.some((part) => part.text && !part.thought);
  const reason = candidate.finishReason ?? "";
  const usage = reason ? ((value.response ?? value).usageMetadata ?? {}) : {};
  if (calls.length || said || reason) write(`${JSON.stringify({ type: "perdure_answer", calls, said, reason, usage })}\n`);
  return value;
}

const parse = JSON.parse;
JSON.parse = (...given) => report(parse(...given));
const json = Response.prototype.json;
Response.prototype.json = async function () {
  return report(await json.call(this));
};

const left = (process.env.NODE_OPTIONS ?? "").split(" ").filter((word) => word !== `--import=${import.meta.url}`).join(" ");
if (left) process.env.NODE_OPTIONS = left;
else delete process.env.NODE_OPTIONS;
