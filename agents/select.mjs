// Keep only the named packages in package.json: `node select.mjs NAME...`, or `none`.
// Called by the Containerfile. `npm install` then takes their versions from the lock file.
import { readFileSync, writeFileSync } from "node:fs";

const wanted = process.argv.slice(2).filter((name) => name !== "none");
const manifest = JSON.parse(readFileSync("package.json", "utf8"));
const unknown = wanted.filter((name) => !(name in manifest.dependencies));
if (unknown.length) {
  console.error(`not in agents/package.json: ${unknown.join(", ")}. Known: ${Object.keys(manifest.dependencies).join(", ")}`);
  process.exit(1);
}
manifest.dependencies = Object.fromEntries(wanted.map((name) => [name, manifest.dependencies[name]]));
// npm refuses an override that refers to a package that is not kept.
const kept = Object.entries(manifest.overrides ?? {}).filter(([name]) => wanted.includes(name));
manifest.overrides = Object.fromEntries(kept);
writeFileSync("package.json", JSON.stringify(manifest, null, 2));
