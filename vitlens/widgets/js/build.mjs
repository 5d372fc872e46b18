// Builds src/<name>.entry.js into ../static: `node build.mjs [name ...]`. With --check it writes
// nothing and fails unless ../static holds exactly what the sources give.
import { build } from "esbuild";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const LIMIT = 150_000; // bytes of one file

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "..", "static");
const { values, positionals } = parseArgs({
  options: { check: { type: "boolean", default: false } },
  allowPositionals: true,
});
const all = readdirSync(join(here, "src"))
  .filter((file) => file.endsWith(".entry.js"))
  .map((file) => file.replace(".entry.js", ""));

mkdirSync(out, { recursive: true });
/** @type {Set<string>} */
const built = new Set();
for (const name of positionals.length ? positionals : all) {
  const { outputFiles } = await build({
    entryPoints: [join(here, "src", `${name}.entry.js`)],
    outdir: out,
    entryNames: name,
    bundle: true,
    write: false,
    minify: true,
    format: "esm",
    target: "es2022",
    charset: "utf8",
    legalComments: "none",
  });
  for (const { path, contents } of outputFiles) put(path, contents);
}

if (values.check) {
  for (const file of readdirSync(out)) if (!built.has(file)) fail(`static/${file} has no source`);
}

/** @param {string} path @param {Uint8Array} contents */
function put(path, contents) {
  const size = `${(contents.length / 1000).toFixed(1)} kB`;
  console.log(`${basename(path).padEnd(16)} ${size.padStart(10)}`);
  built.add(basename(path));
  if (contents.length > LIMIT) fail(`${basename(path)} is larger than ${LIMIT / 1000} kB`);
  if (existsSync(path) && readFileSync(path).equals(contents)) return;
  if (values.check) fail(`static/${basename(path)} is not what its sources give: make widgets`);
  else writeFileSync(path, contents);
}

/** @param {string} words */
function fail(words) {
  console.error(`${words}.`);
  process.exitCode = 1;
}
