// Builds src/<name>.entry.js into ../static: `node build.mjs [--out FOLDER] [name ...]`.
import { build } from "esbuild";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const LIMIT = 150_000; // bytes of one file

const here = dirname(fileURLToPath(import.meta.url));
const { values, positionals } = parseArgs({
  options: { out: { type: "string", default: join(here, "..", "static") } },
  allowPositionals: true,
});
const out = values.out;
const all = readdirSync(join(here, "src"))
  .filter((file) => file.endsWith(".entry.js"))
  .map((file) => file.replace(".entry.js", ""));

mkdirSync(out, { recursive: true });
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

/** @param {string} path @param {Uint8Array} contents */
function put(path, contents) {
  const size = `${(contents.length / 1000).toFixed(1)} kB`;
  console.log(`${basename(path).padEnd(16)} ${size.padStart(10)}`);
  if (contents.length > LIMIT) {
    console.error(`${basename(path)} is larger than ${LIMIT / 1000} kB.`);
    process.exitCode = 1;
  }
  try {
    if (readFileSync(path).equals(contents)) return;
  } catch {
    // not built yet
  }
  writeFileSync(path, contents);
}
