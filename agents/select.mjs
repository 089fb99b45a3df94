// Prepares package.json and package-lock.json for an image: `node select.mjs [NAME...]`, or `none`. Called by the Containerfile, before
// `npm install`, which then takes the versions from the lock file.
import { readFileSync, writeFileSync } from "node:fs";

// Keep only the named packages, if any is named.
const words = process.argv.slice(2);
if (words.length) {
  const wanted = words.filter((name) => name !== "none");
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
}

// npm leaves a platform's own package out of the lock file if the registry did not have it when the file was made, and then never
// installs it (npm/cli#4828). Such a package is taken out of the lock, so that npm asks the registry for it, at the version of
// package.json.
const platform = `-${process.platform}-${process.env.npm_config_cpu ?? process.arch}`;
const lock = JSON.parse(readFileSync("package-lock.json", "utf8"));
for (const [place, each] of Object.entries(lock.packages)) {
  const own = Object.keys(each.optionalDependencies ?? {}).filter((name) => name.endsWith(platform));
  if (own.some((name) => !(`node_modules/${name}` in lock.packages))) {
    console.log(`${place.replace("node_modules/", "")} is not in the lock file for this platform: taken from the registry`);
    delete lock.packages[place];
  }
}
writeFileSync("package-lock.json", JSON.stringify(lock, null, 2));
