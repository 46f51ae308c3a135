// Bundles src/ into dist/ and writes the licences of what went in.
import { build } from "esbuild";
import { execFileSync } from "node:child_process";
import { readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(fileURLToPath(import.meta.url));
const dist = join(root, "dist");

execFileSync(process.execPath, [join(root, "node_modules/typescript/bin/tsc"), "--noEmit", "-p", root], {
  stdio: "inherit",
});

for (const name of readdirSync(dist)) {
  if (name !== ".gitkeep") rmSync(join(dist, name), { recursive: true });
}
await build({
  absWorkingDir: root,
  entryPoints: { app: "src/app.ts" },
  outdir: "dist",
  bundle: true,
  format: "esm",
  // dash.js and hls.js become chunks of their own, loaded when they are used.
  splitting: true,
  chunkNames: "[name]-[hash]",
  minify: true,
  target: ["chrome108", "firefox115", "safari16"],
  legalComments: "none",
  logLevel: "warning",
});

const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8"));
const parts = ["The player page of Volley contains these packages.\n"];
for (const [path, entry] of Object.entries(lock.packages)) {
  if (path === "" || entry.dev || entry.optional) continue;
  const dir = join(root, path);
  const texts = readdirSync(dir)
    .filter((name) => /^(licen[cs]e|notice|copying)/i.test(name))
    .map((name) => readFileSync(join(dir, name), "utf8").trim());
  const name = path.replace(/^.*node_modules\//, "");
  parts.push(`${"=".repeat(72)}\n${name} ${entry.version} (${entry.license ?? "see below"})\n\n${texts.join("\n\n")}\n`);
}
writeFileSync(join(dist, "LICENSES.txt"), parts.join("\n"));
